//! Medians, and a table whose rows appear as soon as they are known.

/// The middle one; of an even number, the mean of both.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.get(middle) {
        None => f64::NAN,
        Some(upper) if values.len() % 2 == 1 => *upper,
        Some(upper) => (values[middle - 1] + upper) / 2.0,
    }
}

/// A table in Markdown, which is also readable as it is.
pub struct Table {
    columns: Vec<&'static str>,
}

/// The narrowest column; names of systems are longer than their column's.
const WIDTH_MIN: usize = 6;
/// The column of names.
const WIDTH_NAME: usize = 16;

impl Table {
    /// With these columns.
    pub fn new(columns: &[&'static str]) -> Table {
        Table {
            columns: columns.to_vec(),
        }
    }

    /// Its first two lines.
    pub fn head(&self) -> String {
        let names: Vec<String> = self.columns.iter().map(|name| (*name).to_owned()).collect();
        let rule: Vec<String> = self.widths().map(|width| "-".repeat(width + 2)).collect();
        format!("{}\n|{}|", self.row(&names), rule.join("|"))
    }

    /// A line.
    pub fn row(&self, cells: &[String]) -> String {
        let cells: Vec<String> = self
            .widths()
            .zip(cells)
            .map(|(width, cell)| format!(" {cell:>width$} "))
            .collect();
        format!("|{}|", cells.join("|"))
    }

    fn widths(&self) -> impl Iterator<Item = usize> {
        self.columns.iter().map(|name| match *name {
            "system" => WIDTH_NAME,
            _ => name.len().max(WIDTH_MIN),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_values() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        assert!(median(vec![]).is_nan());
    }
}

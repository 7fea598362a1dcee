//! The generated files in the tree are what `gen` writes today.

use std::process::Command;

#[test]
fn generated_files_are_fresh() {
    let out = Command::new(env!("CARGO_BIN_EXE_gen"))
        .arg("--check")
        .output()
        .expect("gen was built for this test");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

//! A knot (Debian: package `knot`) with zones of a test, on loopback, or wherever its command runs. Dropped, it is gone.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// It starts and loads in tenths of a second.
const SOON: Duration = Duration::from_secs(20);
/// Where Debian has it, for users whose PATH does not lead there.
const PROGRAMS: [&str; 2] = ["knotd", "/usr/sbin/knotd"];
/// Set by `tests/run --allow-missing`: what needs other programs is left out.
const SKIP: &str = "POSTROAD_SKIP_INTEROP";

/// A port that is free on all these addresses, for UDP and TCP. `None`: knot is missing, and that was asked for.
pub fn port(addresses: &[IpAddr]) -> Option<u16> {
    if program().is_none() {
        assert!(
            std::env::var_os(SKIP).is_some(),
            "knotd is missing: apt-get install knot, or set {SKIP}=1 to leave this test out"
        );
        eprintln!("left out: knotd is missing");
        return None;
    }
    (0..100).find_map(|_| {
        let first = TcpListener::bind((addresses[0], 0)).ok()?;
        let port = first.local_addr().ok()?.port();
        let tcp = addresses[1..]
            .iter()
            .map(|address| TcpListener::bind((*address, port)).map(drop));
        let udp = addresses
            .iter()
            .map(|address| UdpSocket::bind((*address, port)).map(drop));
        tcp.chain(udp).collect::<Result<(), _>>().ok()?;
        Some(port)
    })
}

fn program() -> Option<&'static str> {
    PROGRAMS.into_iter().find(|program| {
        let version = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        version.is_ok_and(|status| status.success())
    })
}

pub struct Knot {
    process: Child,
    folder: PathBuf,
    // Kept for its end.
    _temporary: tempfile::TempDir,
    listen: String,
    zones: BTreeMap<String, u32>,
}

impl Knot {
    /// Starts one with zones: names, and their records but the SOA.
    pub fn start(address: IpAddr, port: u16, zones: &[(&str, &str)]) -> Knot {
        Knot::start_by(address, port, zones, |program| Command::new(program))
    }

    /// The same by a command that `command` makes of the program.
    pub fn start_by(
        address: IpAddr,
        port: u16,
        zones: &[(&str, &str)],
        command: impl Fn(&str) -> Command,
    ) -> Knot {
        let temporary = tempfile::tempdir().expect("a folder");
        let folder = temporary.path().to_owned();
        let listen = format!("{address}@{port}");
        let mut config = format!(
            "server:\n  listen: {listen}\n  rundir: {0}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
             database:\n  storage: {0}\nlog:\n- target: stderr\n  any: warning\nzone:\n",
            folder.display()
        );
        for (zone, _) in zones {
            config += &format!(
                "- domain: {zone}\n  file: {}/{zone}.zone\n  zonefile-load: whole\n  journal-content: none\n",
                folder.display()
            );
        }
        fs::write(folder.join("knot.conf"), config).expect("written");
        let mut texts = BTreeMap::new();
        for (zone, records) in zones {
            texts.insert((*zone).to_owned(), 1);
            fs::write(folder.join(format!("{zone}.zone")), text(zone, 1, records))
                .expect("written");
        }
        let program = program().expect("knotd is installed");
        let process = command(program)
            .arg("--config")
            .arg(folder.join("knot.conf"))
            .stdin(Stdio::null())
            .spawn()
            .expect("knotd starts");
        let mut knot = Knot {
            process,
            folder,
            _temporary: temporary,
            listen,
            zones: texts,
        };
        knot.wait();
        knot
    }

    /// Other records for a zone.
    pub fn zone(&mut self, zone: &str, records: &str) {
        let serial = self.zones.get_mut(zone).expect("a zone of this server");
        *serial += 1;
        let serial = *serial;
        fs::write(
            self.folder.join(format!("{zone}.zone")),
            text(zone, serial, records),
        )
        .expect("written");
        let out = self.control(&["--blocking", "zone-reload", zone]);
        assert!(out.status.success(), "{out:?}");
    }

    /// Ends it before its time.
    pub fn end(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }

    fn control(&self, arguments: &[&str]) -> std::process::Output {
        let program = program()
            .expect("looked for before")
            .replace("knotd", "knotc");
        Command::new(program)
            .arg("--socket")
            .arg(self.folder.join("knot.sock"))
            .args(arguments)
            .output()
            .expect("knotc runs")
    }

    fn wait(&mut self) {
        let start = Instant::now();
        loop {
            let out = self.control(&["zone-status"]);
            // Zones are loaded when they have a serial.
            let loaded = !String::from_utf8_lossy(&out.stdout).contains("serial: -");
            if out.status.success() && loaded {
                return;
            }
            let ended = self.process.try_wait().expect("its state");
            assert!(
                ended.is_none() && start.elapsed() < SOON,
                "knotd on {} does not come up ({ended:?}): {out:?}",
                self.listen
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Knot {
    fn drop(&mut self) {
        self.end();
    }
}

fn text(zone: &str, serial: u32, records: &str) -> String {
    format!("$ORIGIN {zone}.\n$TTL 60\n@ SOA ns1 hostmaster {serial} 3600 600 86400 60\n{records}")
}

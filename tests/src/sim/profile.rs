//! What goes wrong in a run: each profile is one kind of trouble, thick; `mixed` is a little of the older kinds at once.

use crate::sim::rng::Rng;

/// A kind of trouble. The name is that of its test, and `PROFILE`'s value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Profile {
    /// Crashes, cuts, slow disks, transfers and dying clients together, on a disk that is a model.
    Mixed,
    /// Nothing goes wrong; nothing may be delivered twice, and nothing may be slow.
    Calm,
    /// Processes die, alone and all at once, with and without their kernel.
    Crashes,
    /// Partitions in all shapes, slow links, loss, duplicates, reordering.
    Network,
    /// The real log over a disk that loses sectors, tears them, fails, fills, crawls and hangs.
    Disk,
    /// Wall clocks jump, monotonic ones drift, processes stand still.
    Clocks,
    /// The real log with its collector: nearly every segment with something dead in it is copied and given back.
    Collect,
    /// Edges and delivery nodes that die at every point, lie, repeat themselves, and fall silent.
    Clients,
    /// As crashes; replicas begin with programs of two versions, and their rows are compared by digests.
    Versions,
    /// Queue nodes are added, removed and lost, while the rest of it goes wrong too; new replicas begin from snapshots.
    Churn,
}

impl Profile {
    /// All of them.
    pub const ALL: [Profile; 10] = [
        Profile::Mixed,
        Profile::Calm,
        Profile::Crashes,
        Profile::Network,
        Profile::Disk,
        Profile::Clocks,
        Profile::Collect,
        Profile::Clients,
        Profile::Versions,
        Profile::Churn,
    ];

    /// Lower case, as in `PROFILE=disk`.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Steps of chaos; healing, quiescing and settling come on top.
    pub fn chaos_steps(self) -> u64 {
        match self {
            Profile::Mixed => 1500,
            Profile::Churn => 3000,
            Profile::Calm => 300,
            _ => 900,
        }
    }
}

/// How often what happens: "one in so many" steps or events, 0 for never.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Steps: some links are cut, or all are whole again.
    pub cut: u64,
    /// Steps: a delivery node or an edge is cut off from all replicas for a while.
    pub isolate: u64,
    /// Steps: a link becomes slow.
    pub slow_link: u64,
    /// Packets: lost.
    pub drop: u64,
    /// Raft messages: come twice.
    pub duplicate: u64,
    /// Steps that a packet takes at most.
    pub delay: u64,
    /// Steps: a replica dies.
    pub crash: u64,
    /// Crashes: all replicas die at once.
    pub crash_all: u64,
    /// Crashes in the middle of a write (real log only).
    pub crash_in_write: u64,
    /// Steps: a disk is slow for a while.
    pub slow_disk: u64,
    /// Steps: a disk does not answer for up to a minute.
    pub hang_disk: u64,
    /// Steps: a write or a flush fails with EIO, on a minority of the replicas in all.
    pub disk_error: u64,
    /// Steps: something else fills a disk for a while.
    pub full_disk: u64,
    /// Steps: the leadership is asked to move.
    pub transfer: u64,
    /// Steps: a replica stands still (SIGSTOP) and goes on.
    pub pause: u64,
    /// Steps: the wall clock of one of a minority jumps by up to an hour.
    pub wall_jump: u64,
    /// Monotonic clocks run this much fast or slow at most, per mille.
    pub drift: u64,
    /// Fetches for followers: come to nothing.
    pub fetch_fails: u64,
    /// Steps of each delivery node: it dies.
    pub delivery_death: u64,
    /// Steps of each delivery node: it stands still and goes on.
    pub delivery_pause: u64,
    /// Steps of each delivery node: it settles nothing for a while, though it keeps its lease session.
    pub mute: u64,
    /// Settles: come twice.
    pub settle_twice: u64,
    /// Steps of each delivery node: an old settle comes again.
    pub stale_settle: u64,
    /// Keepalives: claim far more room than there is.
    pub lying_credit: u64,
    /// Steps of each edge: it dies and forgets what it had on the way.
    pub edge_death: u64,
    /// Answered messages: the same id comes again, late.
    pub late_retry: u64,
    /// Messages: come in as chunks; of these, one in two is abandoned halfway.
    pub upload: u64,
    /// Whether the replicas keep their logs with the real code, over a simulated disk.
    pub real_log: bool,
    /// Whether programs of two versions meet, and digests of rows are taken.
    pub versions: bool,
    /// Whether these collect what is dead.
    pub collect: bool,
    /// Steps: a node is added, removed, lost, or asked not to lead.
    pub churn: u64,
    /// Results: deferred, so that mail stays for long.
    pub defer: u64,
}

impl Faults {
    /// Those of a profile.
    pub fn of(profile: Profile, rng: &mut Rng) -> Faults {
        // The usual weather of a network.
        let weather = Faults {
            drop: 20,
            duplicate: 50,
            delay: 6,
            drift: 10,
            fetch_fails: 10,
            ..Faults::default()
        };
        let real = profile == Profile::Churn && rng.one_in(4);
        match profile {
            Profile::Mixed => Faults {
                cut: 150,
                crash: 120,
                crash_all: 8,
                slow_disk: 200,
                transfer: 400,
                delivery_death: 900,
                ..weather
            },
            Profile::Calm => Faults {
                delay: 2,
                drift: 1,
                ..Faults::default()
            },
            Profile::Crashes => Faults {
                crash: 50,
                crash_all: 5,
                crash_in_write: 2,
                delivery_death: 300,
                edge_death: 400,
                real_log: rng.one_in(4),
                ..weather
            },
            Profile::Versions => Faults {
                crash: 60,
                crash_all: 6,
                transfer: 200,
                versions: true,
                ..weather
            },
            Profile::Churn => Faults {
                cut: 250,
                crash: 150,
                crash_all: 10,
                crash_in_write: 2,
                slow_disk: 300,
                full_disk: 900,
                transfer: 400,
                delivery_death: 900,
                late_retry: 6,
                upload: 8,
                defer: 4,
                churn: 150,
                real_log: real,
                collect: real && rng.one_in(2),
                ..weather
            },
            Profile::Network => Faults {
                cut: 60,
                isolate: 150,
                slow_link: 80,
                drop: 8,
                duplicate: 10,
                delay: 20,
                transfer: 200,
                ..weather
            },
            Profile::Disk => Faults {
                crash: 150,
                crash_all: 4,
                crash_in_write: 1,
                slow_disk: 100,
                hang_disk: 600,
                disk_error: 500,
                full_disk: 300,
                upload: 4,
                real_log: true,
                collect: rng.one_in(3),
                ..weather
            },
            Profile::Clocks => Faults {
                pause: 120,
                wall_jump: 60,
                drift: 20,
                transfer: 100,
                delivery_pause: 150,
                ..weather
            },
            Profile::Collect => Faults {
                crash: 100,
                crash_all: 4,
                crash_in_write: 2,
                slow_disk: 300,
                disk_error: 900,
                full_disk: 500,
                upload: 6,
                defer: 2,
                real_log: true,
                collect: true,
                ..weather
            },
            Profile::Clients => Faults {
                transfer: 300,
                isolate: 400,
                crash: 600,
                delivery_death: 120,
                delivery_pause: 600,
                mute: 300,
                settle_twice: 5,
                stale_settle: 30,
                lying_credit: 10,
                edge_death: 150,
                late_retry: 3,
                upload: 5,
                ..weather
            },
        }
    }
}

//! The faults: what is done to a world, once or again and again, and what may come of it.

use std::time::{Duration, Instant};

use crate::chance::Chance;
use crate::history::Allowed;
use crate::world::{Form, World};

/// One fault.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    /// The number of the plan.
    pub(crate) number: &'static str,
    pub(crate) form: Form,
    pub(crate) allowed: Allowed,
    /// Only where each fault has a time (`FAULTS_SECONDS`): it takes long.
    pub(crate) long_only: bool,
    /// How long members that are gone may still be counted.
    pub(crate) ghosts: Ghosts,
    /// What is done before the history begins.
    pub(crate) prepare: fn(&mut World),
    /// One blow, and the world made whole again.
    pub(crate) strike: fn(&mut World, &mut Chance),
    /// What is taken back when the history has ended.
    pub(crate) restore: fn(&mut World),
}

/// Who is counted among the members of a room after the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ghosts {
    /// A gateway died, or Redis forgot: within a lease and ten seconds.
    UntilReaped,
    /// Everybody left in order: at once, but for the grace of those that were cut off.
    InGrace,
    /// The log lost that somebody left: until the nodes have looked through the registry, which takes up to two
    /// minutes. In the short form who is left over is counted.
    UntilAudited,
}

const NOTHING_LOST: Allowed = Allowed { loss: false, closes: &[], lateness_max_ms: None };
const LOSS: Allowed = Allowed { loss: true, closes: &[], lateness_max_ms: None };

fn nothing(_: &mut World) {}

fn pause(chance: &mut Chance, low_ms: u64, high_ms: u64) {
    std::thread::sleep(Duration::from_millis(chance.between(low_ms, high_ms)));
}

const BASE: Fault = Fault {
    name: "calm",
    number: "–",
    form: Form::Standalone,
    allowed: NOTHING_LOST,
    long_only: false,
    ghosts: Ghosts::InGrace,
    prepare: nothing,
    strike: |_, chance| pause(chance, 4_000, 4_000),
    restore: nothing,
};

/// All of them, in the order in which they run.
pub(crate) const FAULTS: &[Fault] = &[
    Fault { allowed: Allowed { lateness_max_ms: Some(1_000), ..NOTHING_LOST }, ..BASE },
    Fault { name: "kill-pubsub", number: "3", strike: |world, chance| client_kill(world, chance, "pubsub"), ..BASE },
    Fault { name: "kill-normal", number: "3", strike: |world, chance| client_kill(world, chance, "normal"), ..BASE },
    Fault {
        name: "script-flush",
        number: "10",
        strike: |world, chance| {
            for _ in 0..5 {
                tell(world, &["SCRIPT", "FLUSH"]);
                pause(chance, 300, 900);
            }
        },
        ..BASE
    },
    Fault { name: "out-of-memory", number: "10", strike: out_of_memory, ..BASE },
    Fault {
        name: "redis-stop-6s",
        number: "2",
        strike: |world, _| world.server().freeze(Duration::from_secs(6)),
        ..BASE
    },
    Fault {
        name: "redis-stop-40s",
        number: "2",
        long_only: true,
        strike: |world, _| world.server().freeze(Duration::from_secs(40)),
        ..BASE
    },
    Fault {
        name: "gateway-stop-8s",
        number: "4",
        ghosts: Ghosts::UntilReaped,
        strike: |world, chance| gateway_stop(world, chance, Duration::from_secs(8)),
        ..BASE
    },
    Fault {
        name: "gateway-stop-15s",
        number: "4",
        ghosts: Ghosts::UntilReaped,
        // Longer than a lease: the others have counted its connections as gone.
        allowed: Allowed { closes: &["4006"], ..NOTHING_LOST },
        strike: |world, chance| gateway_stop(world, chance, Duration::from_secs(15)),
        ..BASE
    },
    Fault {
        name: "gateway-kill-one",
        number: "11",
        ghosts: Ghosts::UntilReaped,
        allowed: Allowed { closes: &["1006"], ..NOTHING_LOST },
        strike: |world, chance| {
            let victim = chance.below(world.gateways.len());
            world.gateways[victim].kill();
            pause(chance, 1_500, 3_000);
            world.gateways[victim].start();
            world.gateways[victim].wait_until_ready();
        },
        ..BASE
    },
    Fault {
        name: "gateway-kill-all",
        number: "11",
        ghosts: Ghosts::UntilReaped,
        allowed: Allowed { closes: &["1006"], ..NOTHING_LOST },
        strike: |world, chance| {
            world.gateways.iter_mut().for_each(|gateway| gateway.kill());
            pause(chance, 500, 1_500);
            world.gateways.iter_mut().for_each(|gateway| gateway.start());
            world.gateways.iter().for_each(|gateway| gateway.wait_until_ready());
        },
        ..BASE
    },
    Fault {
        name: "flapping",
        number: "13",
        allowed: LOSS,
        prepare: |world| world.server().persist("everysec"),
        strike: |world, _| {
            for _ in 0..8 {
                world.server().kill();
                std::thread::sleep(Duration::from_millis(200));
                world.server().restart_persistent("everysec");
                std::thread::sleep(Duration::from_millis(200));
            }
        },
        restore: forget_the_file,
        ..BASE
    },
    Fault {
        name: "redis-kill-aof",
        number: "1",
        // Written before it is answered: a restart must be nobody's loss, though the log's epoch grows.
        prepare: |world| world.server().persist("always"),
        strike: |world, chance| {
            world.server().kill();
            pause(chance, 1_000, 3_000);
            world.server().restart_persistent("always");
        },
        restore: forget_the_file,
        ..BASE
    },
    Fault {
        name: "redis-kill-empty",
        number: "1",
        allowed: LOSS,
        ghosts: Ghosts::UntilReaped,
        strike: |world, chance| {
            world.server().kill();
            pause(chance, 1_000, 3_000);
            world.server().restart_empty();
        },
        ..BASE
    },
    Fault {
        name: "flushall",
        number: "10",
        allowed: LOSS,
        ghosts: Ghosts::UntilReaped,
        strike: |world, _| tell(world, &["FLUSHALL"]),
        ..BASE
    },
    Fault {
        name: "failover-asked-for",
        number: "6",
        form: Form::Sentinel,
        allowed: LOSS,
        ghosts: Ghosts::UntilAudited,
        strike: |world, _| {
            world.sentinels().fail_over();
            world.sentinels().wait_until_watched();
        },
        ..BASE
    },
    Fault {
        name: "failover-frozen-master",
        number: "6",
        form: Form::Sentinel,
        allowed: LOSS,
        ghosts: Ghosts::UntilAudited,
        strike: |world, _| world.sentinels().fail_over_a_frozen_master(),
        restore: |world| world.sentinels().wait_until_watched(),
        ..BASE
    },
    Fault {
        name: "failover-with-lag",
        number: "5",
        form: Form::Sentinel,
        allowed: LOSS,
        ghosts: Ghosts::UntilAudited,
        strike: |world, chance| {
            let lag = chance.between(600, 1_200);
            world.sentinels().kill_master_with_lag(Duration::from_millis(lag));
        },
        restore: |world| world.sentinels().wait_until_watched(),
        ..BASE
    },
];

/// One command to the master; a server that is just gone is nobody's mistake.
fn tell(world: &World, words: &[&str]) {
    if let Err(error) = world.command(words) {
        eprintln!("  {}: {error}", words.join(" "));
    }
}

fn client_kill(world: &mut World, chance: &mut Chance, kind: &str) {
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        tell(world, &["CLIENT", "KILL", "TYPE", kind]);
        pause(chance, 1_900, 2_100);
    }
}

fn out_of_memory(world: &mut World, chance: &mut Chance) {
    tell(world, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    tell(world, &["CONFIG", "SET", "maxmemory", "1"]);
    pause(chance, 3_000, 4_000);
    tell(world, &["CONFIG", "SET", "maxmemory", "0"]);
}

fn gateway_stop(world: &mut World, chance: &mut Chance, during: Duration) {
    let victim = chance.below(world.gateways.len());
    world.gateways[victim].signal("STOP");
    std::thread::sleep(during);
    world.gateways[victim].signal("CONT");
}

fn forget_the_file(world: &mut World) {
    tell(world, &["CONFIG", "SET", "appendonly", "no"]);
}

//! What came of a run, and how it is told.

use std::time::Duration;

use super::Used;
use super::check::Wrong;
use super::plan::Plan;
use super::presence::Took;
use super::times::Times;

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Report {
    plan: Plan,
    pub(crate) connects: Vec<Duration>,
    pub(crate) connected_in: Duration,
    /// How long after each of these events presence was right everywhere; `None`: not in time.
    pub(crate) presence: Vec<(&'static str, Option<Took>)>,
    pub(crate) churned: usize,
    pub(crate) publications: usize,
    pub(crate) broadcast_for: Duration,
    /// To shared rooms and to all, without churn and with it.
    pub(crate) latencies: [[Vec<Duration>; 2]; 2],
    /// Deliveries of what was published before the client came back.
    pub(crate) caught_up: usize,
    pub(crate) wrong: Wrong,
    pub(crate) faults: (usize, Vec<String>),
    /// Memory of each node: with nobody, with everybody, after it, in bytes.
    pub(crate) resident_empty: Vec<u64>,
    pub(crate) resident_full: Vec<u64>,
    pub(crate) resident_after: Vec<u64>,
    /// Computing time during the broadcast: of each node, Redis, and the load itself.
    nodes_cpu: Vec<Duration>,
    redis_cpu: Duration,
    /// Of it, in the commits' script.
    script_cpu: Duration,
    load_cpu: Duration,
    measured_for: Duration,
}

impl Report {
    pub(crate) fn new(plan: Plan) -> Report {
        Report {
            plan,
            connects: Vec::new(),
            connected_in: Duration::ZERO,
            presence: Vec::new(),
            churned: 0,
            publications: 0,
            broadcast_for: Duration::ZERO,
            latencies: Default::default(),
            caught_up: 0,
            wrong: Wrong::default(),
            faults: Default::default(),
            resident_empty: Vec::new(),
            resident_full: Vec::new(),
            resident_after: Vec::new(),
            nodes_cpu: Vec::new(),
            redis_cpu: Duration::ZERO,
            script_cpu: Duration::ZERO,
            load_cpu: Duration::ZERO,
            measured_for: Duration::ZERO,
        }
    }

    pub(super) fn used(&mut self, before: &Used, after: &Used) {
        let nodes = after.nodes.iter().zip(&before.nodes);
        self.nodes_cpu = nodes.map(|(after, before)| after.since(*before).total()).collect();
        self.redis_cpu = microseconds(after.redis.cpu_us - before.redis.cpu_us);
        self.script_cpu = microseconds(after.redis.command_us(&before.redis, "evalsha"));
        self.load_cpu = after.load.since(before.load).total();
        self.measured_for = after.at - before.at;
    }

    /// Deliveries to all clients.
    pub(crate) fn deliveries(&self) -> usize {
        self.latencies.iter().flatten().map(Vec::len).sum::<usize>() + self.caught_up
    }

    /// Whether everything was as it must be.
    pub(crate) fn is_right(&self) -> bool {
        self.wrong == Wrong::default() && self.faults.0 == 0 && self.presence.iter().all(|(_, took)| took.is_some())
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Plan { connections, rooms, rooms_per_second, all_per_second, .. } = &self.plan;
        writeln!(
            f,
            "{connections} connections, half Socket.IO, half JSON, on {} nodes and one Redis; {rooms} rooms of {} and one of all;\n\
             {rooms_per_second} publications a second to the rooms and {all_per_second} to all, half by clients, half by the HTTP API,\n\
             for {:.1} s, in which {} clients left and came back on the other node. The clients are one thread that shares\n\
             the machine's {} cores with the nodes and Redis: its own waiting is in every time here.",
            self.nodes_cpu.len(),
            self.plan.members(),
            self.broadcast_for.as_secs_f64(),
            self.churned,
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        )?;
        self.times(f)?;
        self.presence_and_order(f)?;
        self.resources(f)
    }
}

impl Report {
    fn times(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line = |f: &mut std::fmt::Formatter<'_>, what: &str, times: &[Duration]| {
            if times.is_empty() {
                return writeln!(f, "  {what:<56} nothing");
            }
            let times_count = times.len();
            let times = Times::new(times.to_vec());
            let [p50, p99, max] = [50, 99, 100].map(|percent| times.percentile_ms(percent));
            writeln!(f, "  {what:<56} p50 {p50:>8.2}  p99 {p99:>8.2}  max {max:>8.2} ms  of {times_count}")
        };
        line(f, "from TCP to welcome", &self.connects)?;
        for (name, latencies) in ["a broadcast to a room", "a broadcast to all"].iter().zip(&self.latencies) {
            for (when, latencies) in ["", ", while clients leave and come back"].iter().zip(latencies) {
                line(f, &format!("{name}{when}"), latencies)?;
            }
        }
        writeln!(
            f,
            "  all connected and joined in {:.1} s; {} publications, {} deliveries ({} of them caught up), {:.0} a second",
            self.connected_in.as_secs_f64(),
            self.publications,
            self.deliveries(),
            self.caught_up,
            self.deliveries() as f64 / self.broadcast_for.as_secs_f64(),
        )
    }

    fn presence_and_order(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Wrong { lost, twice, disordered, foreign } = self.wrong;
        writeln!(f, "  lost {lost}, twice {twice}, out of order {disordered}, not of the room {foreign}")?;
        write!(f, "  presence and totals right on all nodes:")?;
        for (index, (when, took)) in self.presence.iter().enumerate() {
            let separator = if index == 0 { "" } else { ";" };
            match took {
                Some(Took { rooms, totals }) => {
                    let [rooms, totals] = [rooms, totals].map(Duration::as_secs_f64);
                    write!(f, "{separator} {when}, rooms after {rooms:.1} s, totals after {totals:.1} s")?;
                }
                None => write!(f, "{separator} {when}, NOT IN TIME")?,
            }
        }
        writeln!(f)?;
        let (count, first) = &self.faults;
        writeln!(f, "  faults: {count}")?;
        first.iter().try_for_each(|fault| writeln!(f, "    {fault}"))
    }

    fn resources(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let deliveries = self.deliveries().max(1) as f64;
        let cores = |used: Duration| used.as_secs_f64() / self.measured_for.as_secs_f64();
        let each = |used: Duration| used.as_secs_f64() * 1e6 / deliveries;
        let of_node = self.plan.connections as f64 / self.nodes_cpu.len() as f64;
        for (node, used) in self.nodes_cpu.iter().enumerate() {
            let [empty, full, after] =
                [&self.resident_empty, &self.resident_full, &self.resident_after].map(|of| of[node]);
            writeln!(
                f,
                "  node {node}: {:.1} MB with nobody, {:.1} MB with its {of_node:.0} connections in two rooms each, \
                 {:.0} bytes each; {:.1} MB after it. {:.2} s of CPU, {:.0} % of a core",
                empty as f64 / 1e6,
                full as f64 / 1e6,
                full.saturating_sub(empty) as f64 / of_node,
                after as f64 / 1e6,
                used.as_secs_f64(),
                cores(*used) * 100.0,
            )?;
        }
        let nodes: Duration = self.nodes_cpu.iter().sum();
        writeln!(
            f,
            "  CPU a delivery: nodes {:.2} µs, Redis {:.2} µs ({:.2} s, {:.2} of it commits), the clients themselves {:.2} µs ({:.2} s, {:.0} % of a core)",
            each(nodes),
            each(self.redis_cpu),
            self.redis_cpu.as_secs_f64(),
            self.script_cpu.as_secs_f64(),
            each(self.load_cpu),
            self.load_cpu.as_secs_f64(),
            cores(self.load_cpu) * 100.0,
        )
    }
}

fn microseconds(number: f64) -> Duration {
    Duration::from_secs_f64(number.max(0.0) / 1e6)
}

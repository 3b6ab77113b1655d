//! Scenarios: `NAME.scenario.toml`, what happens to a plugin that is tested on its developer's machine.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use toml::value::{Datetime, Offset};

use super::context::Context;
use super::limits::call_limits;
use super::source::{Document, Given, Mistake, Mistakes, Place, Report, Section, read_text};
use super::tenant::{patterns, plugin, role_name, texts};
use super::{Environment, ProcessEnvironment};
use crate::close::Close;
use crate::commit::Millis;
use crate::event::check_event_name;
use crate::event::request::Request;
use crate::room::ROOT_NAMESPACE;
use crate::scenario::{ADVANCE_MS_MAX, Action, STEPS_MAX, Scenario, Step};
use crate::tenant::{BreakerLimits, CallLimits, PluginSettings, Role};

mod expect;

/// What the names of these files end with.
pub const ENDING: &str = ".scenario.toml";

/// When a scenario begins that does not say: 2026-01-01T09:00:00Z.
const BEGINS_MS: Millis = 1_767_258_000_000;

/// How a connection ends where a scenario does not say.
const LEFT: Close = Close::ClientLeft;

/// Limits that count by the clock on the wall, of which a scenario has none.
const BY_THE_CLOCK: [&str; 4] = ["cpu_ms_per_second", "log_lines_per_minute", "publications_per_second", "breaker"];

/// What is said of them.
const OF_THE_CLOCK: &str = "counts by the clock on the wall, which does not pass in a scenario: leave it out";

/// The most conflicts of one step.
const CONFLICTS_MAX: u64 = 64;

/// Reads a scenario for a plugin of this name and role.
///
/// # Errors
/// All that is wrong with it.
pub fn scenario(path: &Path, tested: &str, role: Role) -> Result<Scenario, Mistakes> {
    let mut report = Report::default();
    let Some(text) = read_text(path, &mut report) else { return Err(Mistakes(report.mistakes)) };
    let source: Arc<str> = path.display().to_string().into();
    let document = Document::parse(&source, &text, &mut report);
    let read = document.map(|document| read(document.root(), path, (tested, role), &mut report));
    match (read, report.mistakes.is_empty()) {
        (Some(scenario), true) => Ok(scenario),
        _ => Err(Mistakes(report.mistakes)),
    }
}

fn read(mut file: Section<'_>, path: &Path, tested: (&str, Role), report: &mut Report) -> Scenario {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(ENDING).or(name.strip_suffix(".toml")).unwrap_or(&name).to_owned();
    let now = file.get("now").and_then(|given| point_in_time(&given, report)).unwrap_or(BEGINS_MS);
    let settings = file.section("settings", report).map(|section| texts(&section, report)).unwrap_or_default();
    let call_limits = limits(file.section("call_limits", report), report);
    let users = users(file.section("users", report), report);
    let plugins = plugins(file.sections("plugins", report), path, tested, &call_limits, report);
    let relay = patterns(file.get("relay"), report).unwrap_or_default();
    let broadcast = patterns(file.get("broadcast"), report).unwrap_or_default();
    let source = file.at.source.clone();
    let steps = steps(&mut file, &users, report);
    file.finish(report);
    Scenario { name, source, now, settings, call_limits, users, plugins, relay, broadcast, steps }
}

/// Those of production; what counts by the clock counts nothing.
fn limits(section: Option<Section<'_>>, report: &mut Report) -> CallLimits {
    if let Some(section) = &section {
        for (_, given) in section.iter().filter(|(name, _)| BY_THE_CLOCK.contains(name)) {
            report.mistake(given.at, OF_THE_CLOCK);
        }
    }
    let limits = call_limits(section, report);
    let breaker = BreakerLimits { failure_percent: 0, ..limits.breaker };
    CallLimits { cpu_ms_per_second: 0, log_lines_per_minute: None, publications_per_second: 0, breaker, ..limits }
}

/// The claims of each; an empty table has none.
fn users(section: Option<Section<'_>>, report: &mut Report) -> BTreeMap<String, Value> {
    let mut users = BTreeMap::new();
    for (name, given) in section.iter().flat_map(Section::iter) {
        let Some(claims) = given.json(report) else { continue };
        if !claims.is_object() {
            given.wrong("must be a table of claims; an empty one, {}, has none", report);
            continue;
        }
        users.insert(name.to_owned(), claims);
    }
    users
}

/// The plugins beside the one that is tested.
fn plugins(
    sections: Vec<Section<'_>>,
    path: &Path,
    (tested, role): (&str, Role),
    limits: &CallLimits,
    report: &mut Report,
) -> Vec<PluginSettings> {
    let env: &dyn Environment = &ProcessEnvironment;
    let (demo, plugins_dir, with_components, of_a_file) = (false, None, true, true);
    let context = Context { path, name: tested, env, demo, plugins_dir, with_components, of_a_file };
    let mut names: HashSet<Arc<str>> = HashSet::from([tested.into()]);
    let mut roles = HashSet::from([role]);
    let mut plugins = Vec::new();
    for section in sections {
        let at = section.at.clone();
        let Some(other) = plugin(section, &context, report) else { continue };
        if !names.insert(other.name.clone()) {
            let problem = format!("the name {:?} is given twice; {tested:?} is the plugin that is tested", other.name);
            report.mistake(at.clone(), problem);
        }
        if other.limits.cpu_ms_per_second.is_some() {
            report.mistake(at.clone(), format!("call_limits.cpu_ms_per_second {OF_THE_CLOCK}"));
        }
        for problem in other.limits.beyond(limits) {
            report.mistake(at.clone(), problem);
        }
        if other.role != Role::Handler && !roles.insert(other.role) {
            report.mistake(at, format!("a second {}; a tenant has at most one", role_name(other.role)));
        }
        plugins.push(other);
    }
    plugins
}

fn steps(file: &mut Section<'_>, users: &BTreeMap<String, Value>, report: &mut Report) -> Vec<Step> {
    let sections = file.sections("steps", report);
    if sections.is_empty() || sections.len() > STEPS_MAX {
        let at = Place { key: "steps".into(), ..file.at.clone() };
        report.mistake(at, format!("{} [[steps]], from 1 to {STEPS_MAX} are possible", sections.len()));
        return Vec::new();
    }
    let mut kept = BTreeSet::from(["any".to_owned()]);
    let read = |section| {
        let step = step(section, users, &kept, report)?;
        kept.extend(step.keep.keys().cloned());
        Some(step)
    };
    sections.into_iter().filter_map(read).collect()
}

/// One of `[[steps]]`.
fn step(
    mut given: Section<'_>,
    users: &BTreeMap<String, Value>,
    kept: &BTreeSet<String>,
    report: &mut Report,
) -> Option<Step> {
    let at = given.at.clone();
    let action = action(&mut given, users, report);
    let mut conflicts = 0;
    given.integer("conflict", 0..=CONFLICTS_MAX, &mut conflicts, report);
    let unavailable = given.get("unavailable").and_then(|given| given.boolean(report)).unwrap_or(false);
    let expected = given.section("expect", report).map(|section| expect::expectations(section, report));
    let keep = given.section("keep", report).map(|section| keep(&section, report)).unwrap_or_default();
    given.finish(report);
    let step = Step {
        line: at.line.unwrap_or_default(),
        action: action?,
        conflicts,
        unavailable,
        expected: expected.unwrap_or_default(),
        keep,
    };
    for name in unknown_names(&step, kept) {
        let problem =
            format!("`${{{name}}}` is not kept by an earlier step (keep.{name} = \"/pointer/into/its/reply\")");
        report.mistake(at.clone(), problem);
    }
    Some(step)
}

/// What a step does: just one thing.
fn action(given: &mut Section<'_>, users: &BTreeMap<String, Value>, report: &mut Report) -> Option<Action> {
    let kinds = ["event", "http", "connect", "disconnect", "join", "leave", "advance"];
    let found: Vec<_> = kinds.into_iter().filter_map(|kind| Some((kind, given.get(kind)?))).collect();
    let user = given.get("user");
    let namespace = given.get("namespace").map_or(Some(ROOT_NAMESPACE.into()), |given| namespace(&given, report));
    let args = arguments(given, report);
    let [(kind, what)] = &found[..] else {
        let problem = format!("a step does one thing: one of {}", kinds.join(", "));
        report.mistake(given.at.clone(), problem);
        return None;
    };
    let alone = matches!(*kind, "http" | "advance");
    let name = match (&user, alone) {
        (Some(user), true) => {
            user.wrong(format_args!("`{kind}` is nobody's: leave it out"), report);
            return None;
        }
        (None, true) => String::new(),
        (None, false) => {
            report.mistake(what.at.clone(), "`user` is missing: who is it?");
            return None;
        }
        (Some(user), false) => acting(user, users, report)?,
    };
    if !matches!(*kind, "event" | "http" | "join")
        && let Some(args) = &args
    {
        report.mistake(args.at.clone(), format!("`{kind}` carries no data"));
        return None;
    }
    let args = args.map(|args| args.value);
    let (user, namespace) = (name, namespace?);
    Some(match *kind {
        "connect" => match what.boolean(report)? {
            true => Action::Connect { user, namespace },
            false => {
                what.wrong("must be true", report);
                return None;
            }
        },
        "disconnect" => Action::Disconnect { user, namespace, reason: ending(what, report)? },
        "join" => Action::Join { user, namespace, room: what.string(report)?, params: args },
        "leave" => Action::Leave { user, namespace, room: what.string(report)? },
        "advance" => Action::Advance(duration(what, report)?),
        _ => {
            let user = (*kind == "event").then_some(user);
            let event = event_name(what, report)?;
            Action::Event { user, namespace, event, args: args.unwrap_or_else(|| json!([])) }
        }
    })
}

/// A user that the file names.
fn acting(given: &Given<'_>, users: &BTreeMap<String, Value>, report: &mut Report) -> Option<String> {
    let name = given.string(report)?;
    if users.contains_key(&name) {
        return Some(name);
    }
    let known: Vec<_> = users.keys().map(String::as_str).collect();
    given.wrong(format_args!("must be one of [users], which are: {}", known.join(", ")), report);
    None
}

fn namespace(given: &Given<'_>, report: &mut Report) -> Option<Arc<str>> {
    let name = given.string(report)?;
    if name == ROOT_NAMESPACE || (name.starts_with('/') && !name.contains('#') && name.len() > 1) {
        return Some(name.into());
    }
    given.wrong("must start with `/` and have no `#`", report);
    None
}

fn event_name(given: &Given<'_>, report: &mut Report) -> Option<String> {
    let name = given.string(report)?;
    if let Err(error) = check_event_name(&name) {
        report.mistake(given.at.clone(), error.to_string());
        return None;
    }
    if Request::of(&name).is_some() {
        given.wrong(
            "must be an event of the tenant's; this one the gateway answers itself (see `join`, `leave`)",
            report,
        );
        return None;
    }
    Some(name)
}

/// `true`, or the word of an ending.
fn ending(given: &Given<'_>, report: &mut Report) -> Option<String> {
    let mut unheard = Report::default();
    if given.boolean(&mut unheard) == Some(true) {
        return Some(LEFT.word().to_owned());
    }
    let word = given.string(&mut unheard).filter(|word| Close::ALL.iter().any(|close| close.word() == word));
    if word.is_none() {
        given.wrong("must be true, or why: \"client_left\", \"connection_lost\" or another of the endings", report);
    }
    word
}

/// Arguments, and where they are written.
struct Arguments {
    at: Place,
    value: Value,
}

/// `data`, `data_json` (one argument) or `args_json` (all of them).
fn arguments(given: &mut Section<'_>, report: &mut Report) -> Option<Arguments> {
    let found: Vec<_> =
        ["data", "data_json", "args_json"].into_iter().filter_map(|key| Some((key, given.get(key)?))).collect();
    if let [_, (_, second), ..] = &found[..] {
        report.mistake(second.at.clone(), "one of `data`, `data_json` and `args_json`, not several");
    }
    let (key, given) = found.first()?;
    let value = match *key {
        "data" => json!([given.json(report)?]),
        "data_json" => json!([json_text(given, report)?]),
        _ => json_text(given, report)?,
    };
    if !value.is_array() {
        given.wrong("must be a JSON array", report);
        return None;
    }
    Some(Arguments { at: given.at.clone(), value })
}

/// A text that is JSON.
fn json_text(given: &Given<'_>, report: &mut Report) -> Option<Value> {
    let text = given.string(report)?;
    match serde_json::from_str(&text) {
        Ok(value) => Some(value),
        Err(error) => {
            given.wrong(format_args!("must be JSON ({error})"), report);
            None
        }
    }
}

/// Names, each with a JSON pointer into the reply.
fn keep(section: &Section<'_>, report: &mut Report) -> BTreeMap<String, String> {
    let mut keep = BTreeMap::new();
    for (name, given) in section.iter() {
        let Some(pointer) = given.string(report) else { continue };
        if !pointer.is_empty() && !pointer.starts_with('/') {
            given.wrong("must be a JSON pointer into the reply: \"/visitor_id\"; \"\" is the whole", report);
        } else if name == "any" || name.contains('}') {
            report.mistake(given.at, "a name is anything but `any`, and without `}`");
        } else {
            keep.insert(name.to_owned(), pointer);
        }
    }
    keep
}

/// The names in `${…}` that nothing stands for. What a step keeps of its reply its own expectations can name.
fn unknown_names(step: &Step, kept: &BTreeSet<String>) -> BTreeSet<String> {
    let done = match &step.action {
        Action::Event { args, .. } => args.to_string(),
        Action::Join { room, params, .. } => format!("{room} {}", params.clone().unwrap_or_default()),
        Action::Leave { room, .. } => room.clone(),
        Action::Connect { .. } | Action::Disconnect { .. } | Action::Advance(_) => String::new(),
    };
    let expected: String = step.expected.iter().map(|one| one.value.to_string()).collect();
    let unknown = names_in(&done).filter(|name| !kept.contains(*name) || *name == "any");
    let unexpected = names_in(&expected).filter(|name| !kept.contains(*name) && !step.keep.contains_key(*name));
    unknown.chain(unexpected).map(str::to_owned).collect()
}

fn names_in(text: &str) -> impl Iterator<Item = &str> {
    text.split("${").skip(1).filter_map(|rest| rest.split_once('}').map(|(name, _)| name))
}

/// `500ms`, `30s`, `2m`, `1h`, `1d`, or several of them: `1h30m`.
fn duration(given: &Given<'_>, report: &mut Report) -> Option<Millis> {
    let text = given.string(report)?;
    let ms = milliseconds(&text).filter(|ms| *ms <= ADVANCE_MS_MAX);
    if ms.is_none() {
        given.wrong(
            "must be a time of ten years at most, such as \"500ms\", \"30s\", \"2m\", \"1h30m\" or \"1d\"",
            report,
        );
    }
    ms
}

fn milliseconds(text: &str) -> Option<Millis> {
    let (mut rest, mut sum) = (text, 0_u64);
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = rest.split_at(digits);
        let letters = unit.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(unit.len());
        let (unit, others) = unit.split_at(letters);
        let factor = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        sum = sum.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        if others.is_empty() {
            return Some(sum);
        }
        rest = others;
    }
}

/// An instant as RFC 3339 writes it, in UTC.
fn point_in_time(given: &Given<'_>, report: &mut Report) -> Option<Millis> {
    let at = given.string(report)?.parse::<Datetime>().ok().and_then(since_the_epoch);
    if at.is_none() {
        given.wrong("must be a point in time since 1970 in UTC: \"2026-01-01T09:00:00Z\"", report);
    }
    at
}

fn since_the_epoch(at: Datetime) -> Option<Millis> {
    let (date, time) = (at.date?, at.time?);
    (at.offset? == Offset::Z).then_some(())?;
    // By eras of 400 years that begin in March.
    let (month, day) = (u64::from(date.month), u64::from(date.day));
    let year = u64::from(date.year).checked_sub(u64::from(month <= 2))?;
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = (era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year).checked_sub(719_468)?;
    let second = u64::from(time.second.unwrap_or(0));
    let seconds = days * 86_400 + u64::from(time.hour) * 3_600 + u64::from(time.minute) * 60 + second;
    Some(seconds * 1_000 + u64::from(time.nanosecond.unwrap_or(0)) / 1_000_000)
}

/// A mistake that is not in a file's text.
pub fn unusable(path: &Path, problem: impl Into<String>) -> Mistake {
    let place = Place { source: path.display().to_string().into(), line: None, key: String::new() };
    Mistake { place, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, ms) in [
            ("500ms", Some(500)),
            ("30s", Some(30_000)),
            ("1h30m", Some(5_400_000)),
            ("0s", Some(0)),
            ("1d", Some(86_400_000)),
            ("30", None),
            ("s", None),
            ("1h 30m", None),
            ("-1s", None),
            ("", None),
        ] {
            assert_eq!(milliseconds(text), ms, "{text:?}");
        }
        let at = |text: &str| text.parse().ok().and_then(since_the_epoch);
        assert_eq!(at("2026-01-01T09:00:00Z"), Some(BEGINS_MS));
        assert_eq!(at("1970-01-01T00:00:00.250Z"), Some(250));
        assert_eq!(at("2024-02-29T12:00:00Z"), Some(1_709_208_000_000));
        for wrong in ["1969-12-31T23:59:59Z", "2026-01-01", "2026-01-01T09:00:00", "2026-01-01T09:00:00+05:30"] {
            assert_eq!(at(wrong), None, "{wrong}");
        }
    }
}

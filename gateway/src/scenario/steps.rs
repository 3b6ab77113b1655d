//! What happens in a step: inputs, as sessions, timers and the HTTP side make them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::comparison::{Difference, filled, filled_text};
use super::members::Connection;
use super::record::{Ended, Happened, answer};
use super::runner::RunnerError;
use super::stage::Stage;
use super::{Action, IMPOSSIBLE, Scenario, TIMERS_PER_ADVANCE_MAX};
use crate::commit::{Commit, CommitId, Effect, Grant, Millis, StateKey, Who};
use crate::decision::farewell::Farewell;
use crate::decision::pipeline::UNKNOWN_EVENT;
use crate::decision::plugin::Plugin;
use crate::decision::verdict::Verdict;
use crate::decision::{Accepted, Decided, Input, Undecided};
use crate::engine::Engine as _;
use crate::event::{Event, Payload};
use crate::room::Room;
use crate::tenant::{Limits, Pattern};

/// What a connection that a handler ends is told.
const ENDED_BY_A_HANDLER: &str = "disconnected";

impl Stage {
    /// Brings in those who are there from the beginning; answers what came of that, and who was not let in.
    pub(super) async fn enter_all(
        &mut self,
        scenario: &Scenario,
    ) -> Result<(Vec<Happened>, Vec<Difference>), RunnerError> {
        let line = scenario.steps.first().map_or(1, |step| step.line);
        let (mut all, mut refused) = (Vec::new(), Vec::new());
        for (user, namespace) in scenario.present() {
            let before = Happened { line, ..Happened::default() };
            let (happened, _) = self.perform(before, &Action::Connect { user, namespace }, 0, &BTreeMap::new()).await?;
            if happened.ended != Ended::Ok {
                refused.push(Difference {
                    step: 0,
                    line,
                    what: format!("{} before the first step; `connect` is the step for trying that", happened.what),
                    aspect: "ended",
                    expected: "ok".into(),
                    happened: json!(happened.ended),
                });
            }
            all.push(happened);
        }
        Ok((all, refused))
    }

    /// Does what a step says; answers what happened, and how many of the wanted conflicts nothing met.
    pub(super) async fn perform(
        &mut self,
        happened: Happened,
        action: &Action,
        conflicts: u32,
        kept: &BTreeMap<String, Value>,
    ) -> Result<(Happened, u32), RunnerError> {
        self.happened = happened;
        self.recorder.meet(conflicts);
        let ended = match action {
            Action::Event { user, namespace, event, args } => {
                let args = filled(args, kept);
                let sayer = user.as_deref().unwrap_or("the back end");
                self.happened.what = format!("{sayer} says {event} {}", inside(&args));
                self.say(user.as_deref(), namespace, event, &args).await?
            }
            Action::Connect { user, namespace } => {
                self.happened.what = format!("{user} comes in");
                self.connect(user, namespace).await?
            }
            Action::Disconnect { user, namespace, reason } => {
                self.happened.what = format!("{user} goes: {reason}");
                self.disconnect(user, namespace, reason).await?
            }
            Action::Join { user, namespace, room, params } => {
                let room = filled_text(room, kept);
                self.happened.what = format!("{user} joins {room}");
                let params = params.as_ref().map(|params| filled(params, kept));
                self.join(user, namespace, &room, params).await?
            }
            Action::Leave { user, namespace, room } => {
                let room = filled_text(room, kept);
                self.happened.what = format!("{user} leaves {room}");
                self.leave(user, namespace, &room).await?
            }
            Action::Advance(by) => {
                self.happened.what = format!("{} pass", duration(*by));
                self.advance(*by).await?
            }
        };
        self.happened.ended = ended;
        self.happened.at_ms = self.clock.now();
        self.read_journal();
        self.note_timers().await?;
        let unmet = self.recorder.meet(0);
        Ok((std::mem::take(&mut self.happened), unmet))
    }

    async fn say(
        &mut self,
        user: Option<&str>,
        namespace: &Arc<str>,
        event: &str,
        args: &Value,
    ) -> Result<Ended, RunnerError> {
        let sender = match user.map(|user| self.member(user, namespace)) {
            Some(Err(ended)) => return Ok(ended),
            Some(Ok(connection)) => Some(connection),
            None => None,
        };
        let data = payload(args);
        let (name, namespace) = (event.into(), namespace.clone());
        let (client, rooms) = sender.map(|one| (one.client, one.rooms)).unzip();
        let event = Event { name, namespace, data, sender: client };
        // As in a session; the tenant's own back end publishes wherever it wants to.
        let may_publish = move |room: &Room| {
            rooms.as_ref().is_none_or(|rooms| rooms.get(room).is_some_and(|grant: &Grant| grant.publish))
        };
        self.decide(Input::Event { event: &event, may_publish: &may_publish }).await
    }

    async fn connect(&mut self, user: &str, namespace: &Arc<str>) -> Result<Ended, RunnerError> {
        if self.members.find(user, namespace).is_some() {
            return Ok(impossible(format!("{user} is connected to {namespace} already")));
        }
        let claims = self.claims.get(user).cloned().unwrap_or_else(|| json!({}));
        let connection = self.members.new_connection(user, namespace, &claims);
        let client = connection.client.clone();
        let input = Input::Connect { who: &client, session: connection.record(window()), returning: None };
        let result = self.run(input).await;
        if result.is_ok() {
            self.members.come(connection);
        }
        let ended = self.absorb(result).await?;
        let hears = self.pipeline.handlers.iter().any(|(handler, _)| handler.exports.connection_events);
        if ended != Ended::Ok || !hears {
            return Ok(ended);
        }
        let handshake =
            json!({ "auth": {}, "query": {}, "origin": null, "address": "127.0.0.1", "recovered": false }).to_string();
        self.decide(Input::Connected { who: &client, handshake: &handshake }).await
    }

    async fn disconnect(&mut self, user: &str, namespace: &Arc<str>, reason: &str) -> Result<Ended, RunnerError> {
        let connection = match self.member(user, namespace) {
            Ok(connection) => connection,
            Err(ended) => return Ok(ended),
        };
        self.depart(&connection, reason).await
    }

    /// As a session ends; its place is not kept for a grace.
    async fn depart(&mut self, connection: &Connection, reason: &str) -> Result<Ended, RunnerError> {
        let farewell = Farewell::new(&connection.client, reason);
        let timers = farewell.timers(&self.pipeline, &connection.session, window());
        let effects = vec![Effect::Gone { id: connection.client.connection.clone() }];
        self.commit(Commit { timers, effects, ..Commit::new(CommitId::random()) }).await
    }

    async fn join(
        &mut self,
        user: &str,
        namespace: &Arc<str>,
        name: &str,
        params: Option<Value>,
    ) -> Result<Ended, RunnerError> {
        let (connection, room) = match self.member(user, namespace).and_then(|one| Ok((one, room(namespace, name)?))) {
            Ok(found) => found,
            Err(ended) => return Ok(ended),
        };
        let data = payload(&params.unwrap_or_else(|| json!([{ "room": name }])));
        let (namespace, sender) = (namespace.clone(), Some(connection.client.clone()));
        let event = Event { name: "join_room".into(), namespace, data: data.clone(), sender };
        let (wanted, session) = ([(room, Some(data))], connection.record(window()));
        let who = &connection.client;
        let input = Input::Join { who, wanted: &wanted, session, resumed: None, request: Some(&event) };
        let mut result = self.run(input).await;
        let refused = result.as_mut().ok().and_then(|decided| decided.refused.pop());
        let ended = self.absorb(result).await?;
        Ok(refused.map_or(ended, |(_, refusal)| Ended::Refused { code: refusal.code, message: refusal.message }))
    }

    async fn leave(&mut self, user: &str, namespace: &Arc<str>, name: &str) -> Result<Ended, RunnerError> {
        let (connection, room) = match self.member(user, namespace).and_then(|one| Ok((one, room(namespace, name)?))) {
            Ok(found) => found,
            Err(ended) => return Ok(ended),
        };
        if room.is_reserved() {
            let message = format!("{room} is given by the gateway and cannot be left");
            return Ok(Ended::Refused { code: "forbidden".into(), message });
        }
        let mut session = connection.record(window());
        session.rooms.remove(&room);
        let who = Who::Connection(connection.client.connection);
        let effects = vec![Effect::Leave { who, room }];
        self.commit(Commit { effects, session: Some(session), ..Commit::new(CommitId::random()) }).await
    }

    /// Moves the clock from one due timer to the next, so that each sees the moment that it was set for.
    async fn advance(&mut self, by: Millis) -> Result<Ended, RunnerError> {
        let until = self.clock.now().saturating_add(by);
        let mut ended = Ended::Ok;
        for fired in 0.. {
            let pending = self.engine.pending_timers(usize::MAX).await?;
            let Some(next) = pending.iter().map(|timer| timer.claimable).min().filter(|next| *next <= until) else {
                break;
            };
            if fired == TIMERS_PER_ADVANCE_MAX {
                let text = format!("more than {TIMERS_PER_ADVANCE_MAX} timers fired while the clock was moved once");
                return Ok(impossible(text));
            }
            self.clock.advance_to(next);
            let claimed = self.engine.claim_timers(1).await?;
            let Some(timer) = claimed.first() else { break };
            let own = timer.key.is_of_plugins();
            self.happened.fired.push(if own { timer.key.name.to_string() } else { "(disconnected)".into() });
            let result = self.run(Input::Timer(timer)).await;
            let verdict = Verdict::of(timer.attempt, &result);
            let one = self.absorb(result).await?;
            match &verdict {
                Verdict::Settled | Verdict::Gone => {}
                Verdict::Untried => self.engine.postpone_timer(timer, 1).await?,
                Verdict::Later { rest_ms } => self.engine.postpone_timer(timer, *rest_ms).await?,
                Verdict::Again { rest_ms, .. } => self.engine.release_timer(timer, *rest_ms).await?,
                Verdict::GivenUp { why } => drop(self.engine.bury_timer(timer, why).await?),
            }
            if ended == Ended::Ok && verdict != Verdict::Gone {
                ended = one;
            }
        }
        self.clock.advance_to(until);
        Ok(ended)
    }

    fn member(&self, user: &str, namespace: &str) -> Result<Connection, Ended> {
        let found = self.members.find(user, namespace).cloned();
        found.ok_or_else(|| impossible(format!("{user} is not connected to {namespace}")))
    }

    async fn decide(&mut self, input: Input<'_>) -> Result<Ended, RunnerError> {
        let result = self.run(input).await;
        self.absorb(result).await
    }

    async fn run(&mut self, input: Input<'_>) -> Result<Decided, Undecided> {
        let accepted = Accepted { id: self.next_id(), at: self.clock.now() };
        self.happened.runs += 1;
        self.decisions.run_accepted(&self.pipeline, input, None, accepted).await
    }

    /// Without any plugin.
    async fn commit(&mut self, commit: Commit) -> Result<Ended, RunnerError> {
        let result = self.decisions.commit_directly(commit).await;
        let (joined, refused) = (Vec::new(), Vec::new());
        let decided = |position| Decided { position, reply: None, memberships: true, joined, refused };
        self.absorb(result.map(decided)).await
    }

    /// Takes over what was committed: who is where now, and what there is to tell of it.
    async fn absorb(&mut self, result: Result<Decided, Undecided>) -> Result<Ended, RunnerError> {
        let mut ending = Vec::new();
        let recorded = self.recorder.take();
        for commit in &recorded.commits {
            self.members.apply(&commit.effects);
            self.happened.note(&commit.effects, &self.members);
            let keys: Vec<StateKey> = commit.writes.iter().map(|(key, _)| key.clone()).collect();
            self.note_state(&keys).await?;
            ending.extend(commit.effects.iter().filter_map(|effect| match effect {
                Effect::Disconnect { room, .. } => Some(self.members.of_room(room)),
                _ => None,
            }));
        }
        for publication in &recorded.ephemeral {
            self.happened.note_publication(publication, true, &self.members);
        }
        // An attempt that lost ran again, unless it was the last one; then the input was refused for it.
        let given_up = matches!(&result, Err(Undecided::Later(refusal)) if refusal.code == "conflict");
        self.happened.runs += recorded.conflicts.saturating_sub(u32::from(given_up));
        for connection in ending.into_iter().flatten() {
            Box::pin(self.depart(&connection, ENDED_BY_A_HANDLER)).await?;
        }
        let word = self.read_journal();
        let by_patterns = self.pipeline.router.is_none();
        if by_patterns && matches!(&result, Err(Undecided::Refused(refusal)) if refusal.code == UNKNOWN_EVENT) {
            let handlers = self.pipeline.handlers.iter();
            let patterns = |(plugin, patterns): &(Arc<Plugin>, Vec<Pattern>)| {
                let patterns: Vec<_> = patterns.iter().map(|pattern| format!("{:?}", pattern.0)).collect();
                format!(
                    "{} handles {}",
                    plugin.name,
                    if patterns.is_empty() { "none".into() } else { patterns.join(", ") }
                )
            };
            let known = handlers.map(patterns).collect::<Vec<_>>().join("; ");
            self.happened.logged.push(format!("info: the gateway: of events, {known}"));
        }
        Ok(match result {
            Ok(decided) => {
                if let Some(reply) = &decided.reply {
                    self.happened.reply = Some(answer(reply));
                }
                Ended::Ok
            }
            Err(Undecided::TimerGone) => Ended::Ok,
            Err(Undecided::Failed(refusal) | Undecided::Engine(refusal)) => {
                Ended::Failed { word: word.map_or(refusal.code, str::to_owned), message: refusal.message }
            }
            Err(Undecided::Refused(refusal) | Undecided::Later(refusal) | Undecided::Unauthorized(refusal)) => {
                Ended::Refused { code: refusal.code, message: refusal.message }
            }
        })
    }
}

/// How long a session can be taken up again: then handlers are told that it is over.
fn window() -> Millis {
    Limits::default().recovery_window_ms
}

/// A step that cannot be done as it is written.
fn impossible(message: String) -> Ended {
    Ended::Failed { word: IMPOSSIBLE.into(), message }
}

fn room(namespace: &str, name: &str) -> Result<Room, Ended> {
    let invalid = |message: String| Ended::Refused { code: "invalid".into(), message };
    Room::parse_in(namespace, name)
        .map_err(|error| invalid(error.to_string()))?
        .ok_or_else(|| invalid(format!("{name} belongs to another namespace than {namespace}")))
}

/// `args` is an array.
fn payload(args: &Value) -> Payload {
    Payload { args: args.to_string().into(), attachments: Vec::new() }
}

/// Arguments as people read them.
fn inside(args: &Value) -> String {
    let args = args.as_array().map(Vec::as_slice).unwrap_or_default();
    args.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Milliseconds as people say them.
pub fn duration(ms: Millis) -> String {
    const UNITS: [(&str, Millis); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    let (mut rest, mut text) = (ms, String::new());
    for (name, unit) in UNITS {
        if rest >= unit {
            text += &format!("{}{name}", rest / unit);
            rest %= unit;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

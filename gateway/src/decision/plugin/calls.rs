//! The contract's exports as methods of a plugin, and what surrounds each call.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::admission::stopping;
use super::bindings::{Answer, Input};
use super::breaker::{BreakerSnapshot, BreakerState, Pass, Turned, Verdict};
use super::budget::Purse;
use super::failure::{CallError, Failure, FailureKind, Hook};
use super::gate::Meter;
use super::host::Call;
use super::instance::{self, Limiter, Place};
use super::journal::{JournalKind, Level, Source};
use super::transaction::{Transaction, Work};
use super::{Admittance, BreakerChange, CACHE_FOR_MS_MAX, Plugin, ROUTE_HANDLERS_MAX};
use crate::client::Client;
use crate::commit::{CommitId, Grant, Millis};
use crate::engine::DueTimer;
use crate::event::{Event, Payload};
use crate::quota::OverQuota;
use crate::room::{ROOT_NAMESPACE, Room};
use crate::tenant::CallLimits;

/// The host asked one thing and took the answer for another's: cannot happen with generated bindings.
pub(super) const OUT_OF_STEP: &str = "the answer is not one to this question";

/// The answer of a hook that has none.
fn done(_: Answer, _: &CallLimits) -> Result<(), String> {
    Ok(())
}

impl Plugin {
    /// May this client connect? Answers the rooms that it joins at once: those of its namespace that are
    /// not the gateway's own. Others that the component names are left out.
    pub async fn connect(&self, tx: &mut Transaction, who: &Client) -> Result<Vec<(Room, Grant)>, CallError> {
        let input = Input::Connect { who: who.clone() };
        let check = |answer, limits: &CallLimits| self.memberships(answer, who, limits);
        self.call(tx, Hook::Connect, &who.namespace, input, check).await
    }

    /// May this client join this room?
    pub async fn join(
        &self,
        tx: &mut Transaction,
        who: &Client,
        room: &Room,
        params: Option<&Payload>,
    ) -> Result<Admittance, CallError> {
        let input = Input::Join { who: who.clone(), room: room.clone(), params: params.cloned() };
        let check = |answer, _: &CallLimits| match answer {
            Answer::Admission(grant, cache_for) => {
                Ok(Admittance { grant, cache_for_ms: cache_for.min(CACHE_FOR_MS_MAX) })
            }
            _ => Err(OUT_OF_STEP.into()),
        };
        self.call(tx, Hook::Join, &who.namespace, input, check).await
    }

    /// Which plugins see this event, in order, by name?
    pub async fn route(
        &self,
        tx: &mut Transaction,
        who: Option<&Client>,
        namespace: &Arc<str>,
        event: &Arc<str>,
    ) -> Result<Vec<String>, CallError> {
        let by_name = self.description.routes_by_name;
        if let Some(known) = self.routes.answer(namespace, event).filter(|_| by_name) {
            metrics::counter!("routes_total", "source" => "memory").increment(1);
            return known.map_err(CallError::Refused);
        }
        metrics::counter!("routes_total", "source" => "component").increment(1);
        let input = Input::Route { who: who.cloned(), namespace: namespace.clone(), event: event.clone() };
        let check = |answer, _: &CallLimits| match answer {
            Answer::Handlers(names) if names.len() <= ROUTE_HANDLERS_MAX => Ok(names),
            Answer::Handlers(names) => {
                Err(format!("named {} handlers for one event; at most {ROUTE_HANDLERS_MAX}", names.len()))
            }
            _ => Err(OUT_OF_STEP.into()),
        };
        let answer = self.call(tx, Hook::Route, namespace, input, check).await;
        match &answer {
            Ok(names) if by_name => self.routes.keep(namespace, event, Ok(names.clone())),
            Err(CallError::Refused(refusal)) if by_name => self.routes.keep(namespace, event, Err(refusal.clone())),
            // A failure is no answer: the next one asks again.
            _ => {}
        }
        answer
    }

    /// Handles an event.
    pub async fn handle(&self, tx: &mut Transaction, event: &Event) -> Result<(), CallError> {
        self.call(tx, Hook::Handle, &event.namespace, Input::Handle { event: event.clone() }, done).await
    }

    /// Handles a timer that is due.
    pub async fn fire(&self, tx: &mut Transaction, timer: &DueTimer) -> Result<(), CallError> {
        self.call(tx, Hook::Fire, &ROOT_NAMESPACE.into(), Input::Fire { timer: timer.clone() }, done).await
    }

    /// A client has connected; `handshake` is one JSON object.
    pub async fn connected(&self, tx: &mut Transaction, who: &Client, handshake: &str) -> Result<(), CallError> {
        let input = Input::Connected { who: who.clone(), handshake: handshake.into() };
        self.call(tx, Hook::Connected, &who.namespace, input, done).await
    }

    /// A client's session has ended.
    pub async fn disconnected(&self, tx: &mut Transaction, who: &Client, reason: &str) -> Result<(), CallError> {
        let input = Input::Disconnected { who: who.clone(), reason: reason.into() };
        self.call(tx, Hook::Disconnected, &who.namespace, input, done).await
    }

    /// Takes an authorizer's rooms at its word as far as it may speak.
    fn memberships(&self, answer: Answer, who: &Client, limits: &CallLimits) -> Result<Vec<(Room, Grant)>, String> {
        let Answer::Memberships(all) = answer else {
            return Err(OUT_OF_STEP.into());
        };
        let limit = limits.memberships;
        if all.len() > limit {
            return Err(format!("named {} rooms to join at once: call_limits.memberships = {limit}", all.len()));
        }
        let mut rooms = Vec::with_capacity(all.len());
        for (name, grant) in all {
            let room = Room::parse(&name).map_err(|error| format!("named a room that is none: {error}"))?;
            if room.is_reserved() {
                tracing::warn!(tenant = %self.tenant, plugin = %self.name, "the authorizer named a room that only \
                    the gateway joins; left out");
            } else if room.namespace() == &*who.namespace {
                rooms.push((room, grant));
            }
        }
        Ok(rooms)
    }

    fn failure(&self, hook: Hook, kind: FailureKind, message: String) -> CallError {
        CallError::Failed(Failure { plugin: self.name.clone(), hook, kind, message, input: None })
    }

    fn exports(&self, hook: Hook) -> bool {
        match hook {
            Hook::Describe => true,
            Hook::Connect | Hook::Join => self.exports.authorization,
            Hook::Route => self.exports.routing,
            Hook::Handle => self.exports.events,
            Hook::Fire => self.exports.timer_events,
            Hook::Connected | Hook::Disconnected => self.exports.connection_events,
        }
    }

    /// One call, from its breaker to the check of its answer. If the caller goes away, the call ends at its next
    /// yield and its transaction comes to nothing.
    pub(super) async fn call<T>(
        &self,
        tx: &mut Transaction,
        hook: Hook,
        namespace: &Arc<str>,
        input: Input,
        check: impl FnOnce(Answer, &CallLimits) -> Result<T, String>,
    ) -> Result<T, CallError> {
        if !self.exports(hook) {
            return Err(self.failure(hook, FailureKind::NotExported, "the component does not export this".into()));
        }
        let Some((tenants, input_id)) = tx.peek().map(|work| (work.limits.clone(), work.invocation.id.clone())) else {
            return Err(self.failure(hook, FailureKind::Internal, "an earlier call was abandoned".into()));
        };
        let limits = self.own_limits.within(&tenants);
        let begun = Instant::now();
        let pass = if hook == Hook::Describe { None } else { Some(self.let_through(hook, &limits)?) };
        let result = self.admitted(tx, hook, namespace, input, &limits).await.and_then(|answer| {
            check(answer, &limits).map_err(|message| self.failure(hook, FailureKind::BadAnswer, message))
        });
        let result = match result {
            Err(CallError::Failed(failure)) => {
                let input = Some(input_id).filter(|_| hook != Hook::Describe);
                let failure = Failure { input, ..failure };
                self.share.journal.add_failure(&self.source(hook), failure.kind.word(), &failure.to_string());
                Err(CallError::Failed(failure))
            }
            Err(CallError::Retry(why)) => {
                let text = format!("asks to be called again later: {why} (input {})", input_id.as_str());
                self.note(hook, Level::Info, &text);
                Err(CallError::Retry(why))
            }
            result => result,
        };
        if let Some(turned) = pass.and_then(|pass| pass.end(Verdict::of(&result), &limits.breaker)) {
            self.tell(hook, turned);
        }
        self.metering.call(hook, result.as_ref().map_or_else(CallError::word, |_| "ok"), begun.elapsed());
        self.account.call(matches!(result, Err(CallError::Failed(_))));
        result
    }

    /// Asks the hook's breaker.
    fn let_through(&self, hook: Hook, limits: &CallLimits) -> Result<Pass<'_>, CallError> {
        match self.breakers.enter(hook, &limits.breaker) {
            Ok((pass, turned)) => {
                if let Some(turned) = turned {
                    self.tell(hook, turned);
                }
                Ok(pass)
            }
            Err(rest) => {
                let retry_after_ms = Millis::try_from(rest.as_millis()).unwrap_or(Millis::MAX).max(1);
                let message = format!(
                    "plugin `{}` is not called in {} for {retry_after_ms} ms: too many of its calls failed \
                     (call_limits.breaker.failure_percent = {})",
                    self.name,
                    hook.name(),
                    limits.breaker.failure_percent
                );
                let error = CallError::BreakerOpen { message, retry_after_ms };
                self.metering.call(hook, error.word(), Duration::ZERO);
                Err(error)
            }
        }
    }

    /// From the line to the end.
    async fn admitted(
        &self,
        tx: &mut Transaction,
        hook: Hook,
        namespace: &Arc<str>,
        input: Input,
        limits: &Arc<CallLimits>,
    ) -> Result<Answer, CallError> {
        let begun = Instant::now();
        let trial = hook == Hook::Describe;
        let _own_place = if trial { None } else { self.own_limits.admit(limits).await? };
        let admitted = self.admission.admit(&self.host.pool, &self.share.budget, limits, trial).await?;
        let Some(mut work) = tx.take() else {
            return Err(self.failure(hook, FailureKind::Internal, "an earlier call was abandoned".into()));
        };
        let tenants = std::mem::replace(&mut work.limits, limits.clone());
        let wall = Duration::from_millis(limits.wall_ms.into()).saturating_sub(begun.elapsed());
        let call = self.prepare(work, hook, namespace, limits, tenants.cpu_ms_per_second);
        let warm = self.warm.clone().filter(|_| !trial);
        let place = Place { prepared: self.prepared.clone(), gate: self.host.gate.clone(), warm };
        let result = self.run(tx, hook, instance::run(place, call, input, wall, admitted)).await;
        if let Some(mut work) = tx.take() {
            work.limits = tenants;
            tx.put_back(work);
        }
        result
    }

    fn prepare(
        &self,
        work: Box<Work>,
        hook: Hook,
        namespace: &Arc<str>,
        limits: &CallLimits,
        cpu_ms_per_second: u32,
    ) -> Call {
        let (own, of_own) = self.own_limits.budget();
        // A trial is not held up by what the tenant's other plugins do.
        let purse = match hook {
            Hook::Describe => None,
            _ => Purse::new([(&self.share.budget, cpu_ms_per_second), (own, of_own)]),
        };
        Call {
            work,
            source: self.source(hook),
            settings: self.settings.clone(),
            namespace: namespace.clone(),
            meter: Meter::new(),
            purse,
            journal: self.share.journal.clone(),
            limiter: Limiter::new(limits.memory_bytes),
            host_calls: 0,
            log_lines: 0,
        }
    }

    fn source(&self, hook: Hook) -> Source {
        Source { plugin: self.name.clone(), digest: self.digest.clone(), hook }
    }

    /// Writes into the tenant's journal.
    fn note(&self, hook: Hook, level: Level, message: &str) {
        let kind = if level == Level::Error { JournalKind::Failure } else { JournalKind::Log };
        self.share.journal.add(&self.source(hook), level, kind, message);
    }

    /// A breaker has changed: everybody who looks is told.
    fn tell(&self, hook: Hook, turned: Turned) {
        let Turned { state, calls, failures, rest } = turned;
        let message = match state {
            BreakerState::Open => {
                format!("the breaker opened for {} ms: {failures} of {calls} calls failed", rest.as_millis())
            }
            BreakerState::HalfOpen => "the breaker lets one call through".to_owned(),
            BreakerState::Closed => "the breaker closed: a call ended well".to_owned(),
        };
        let level = if state == BreakerState::Open { Level::Error } else { Level::Info };
        self.note(hook, level, &message);
        let (tenant, plugin, digest, hook_name) = (&self.tenant, &*self.name, &*self.digest, hook.name());
        if state == BreakerState::Open {
            tracing::warn!(%tenant, plugin, digest, hook = hook_name, "{message}");
        } else {
            tracing::info!(%tenant, plugin, digest, hook = hook_name, "{message}");
        }
        self.metering.breaker(hook, state);
        let change = BreakerChange {
            tenant: self.tenant.clone(),
            plugin: self.name.clone(),
            digest: self.digest.clone(),
            hook,
            state,
            calls,
            failures,
        };
        // Nobody may be listening.
        let _ = self.host.breaker_changes.send(change);
    }

    /// What this plugin did in a call that ended well would leave more than its tenant may keep: told where its
    /// failures are told. It opens no breaker, for the same hook may be what cleans up.
    pub fn went_over(&self, hook: Hook, over: &OverQuota, input: &CommitId) -> Failure {
        let failure = Failure {
            plugin: self.name.clone(),
            hook,
            kind: FailureKind::Quota,
            message: over.to_string(),
            input: Some(input.clone()),
        };
        self.share.journal.add_failure(&self.source(hook), failure.kind.word(), &failure.to_string());
        self.metering.went_over(over.kind);
        self.account.failed();
        failure
    }

    /// What it answered in a call that ended well cannot be: told where its failures are told.
    pub fn answered_wrongly(&self, hook: Hook, message: String, input: &CommitId) -> Failure {
        let kind = FailureKind::BadAnswer;
        let failure = Failure { plugin: self.name.clone(), hook, kind, message, input: Some(input.clone()) };
        self.share.journal.add_failure(&self.source(hook), failure.kind.word(), &failure.to_string());
        self.account.failed();
        failure
    }

    /// The most linear memory that an instance of it had, in bytes; 0 before its first call.
    pub fn memory_peak_bytes(&self) -> usize {
        self.metering.peak_bytes()
    }

    /// How its breakers stand, of hooks that were called.
    pub fn breakers(&self) -> Vec<BreakerSnapshot> {
        self.breakers.snapshots()
    }

    /// Runs a call on the decision runtime and takes the transaction back.
    async fn run(
        &self,
        tx: &mut Transaction,
        hook: Hook,
        running: impl Future<Output = (Call, Result<Answer, CallError>)> + Send + 'static,
    ) -> Result<Answer, CallError> {
        let (call, result) = match AbortOnDropHandle::new(self.host.handle.spawn(running)).await {
            Ok(ended) => ended,
            Err(error) if error.is_cancelled() => return Err(stopping()),
            Err(_) => {
                return Err(self.failure(hook, FailureKind::Internal, "the gateway panicked while serving it".into()));
            }
        };
        self.metering.used(call.meter.spent(), call.limiter.memory_bytes());
        let mut work = call.work;
        let used = work.take_used(&self.name, hook);
        self.account.used(call.meter.spent(), call.host_calls, call.log_lines, &used);
        if result.is_err() {
            work.discard();
        } else {
            work.settle();
        }
        tx.put_back(work);
        result
    }
}

impl Drop for Plugin {
    /// What this version had open is not told any more.
    fn drop(&mut self) {
        for hook in self.breakers.not_closed() {
            self.metering.breaker(hook, BreakerState::Closed);
        }
    }
}

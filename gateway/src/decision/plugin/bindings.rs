//! Where the contract's generated types end: calls into components and out of them, in the
//! nouns of the gateway on this side.

use wasmtime::component::{HasSelf, Instance, InstancePre, Linker};
use wasmtime::{Result, Store};

use super::host::rooms::{Mode, RawPayload};
use super::host::{self, Call, Rejection};
use super::instance::Flood;
use super::journal::Level;
use crate::client::Client;
use crate::commit::{Grant, Millis};
use crate::engine::DueTimer;
use crate::event::{Event, Payload, Refusal};
use crate::room::Room;
use std::sync::Arc;

use exports::{authorization, connection_events, describe, events, routing, timer_events};
use generated::exports::postern::plugin as exports;
use generated::postern::plugin as imports;
use imports::types as wit;

#[allow(missing_docs, unreachable_pub, reason = "generated; the documentation is in the contract")]
mod generated {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "everything",
        imports: {
            "postern:plugin/state.get": async | trappable,
            "postern:plugin/state.get-many": async | trappable,
            "postern:plugin/state.list-keys": async | trappable,
            "postern:plugin/presence.count": async | trappable,
            "postern:plugin/presence.users": async | trappable,
            "postern:plugin/presence.is-online": async | trappable,
            default: trappable,
        },
        exports: { default: async },
    });
}

/// What a component is called with.
#[derive(Debug, Clone)]
pub(super) enum Input {
    Describe,
    Connect { who: Client },
    Join { who: Client, room: Room, params: Option<Payload> },
    Route { who: Option<Client>, namespace: Arc<str>, event: Arc<str> },
    Handle { event: Event },
    Fire { timer: DueTimer },
    Connected { who: Client, handshake: Arc<str> },
    Disconnected { who: Client, reason: Arc<str> },
}

/// What a component answers when it ends well; not checked yet.
#[derive(Debug)]
pub(super) enum Answer {
    Info(String),
    Memberships(Vec<(String, Grant)>),
    Admission(Grant, Millis),
    Handlers(Vec<String>),
    Done,
}

/// How it ends otherwise.
#[derive(Debug)]
pub(super) enum Ending {
    Refused(Refusal),
    Retry(String),
    Fatal(String),
}

/// The interfaces of the contract that a component may export.
pub(super) const EXPORTABLE: [&str; 6] =
    ["describe", "authorization", "routing", "events", "timer-events", "connection-events"];

/// Those that it may import; `types` may be on either side.
pub(super) const IMPORTABLE: [&str; 8] =
    ["types", "invocation", "state", "timers", "rooms", "presence", "log", "config"];

/// Makes everything importable.
pub(super) fn link(linker: &mut Linker<Call>) -> Result<()> {
    generated::Everything::add_to_linker::<_, HasSelf<Call>>(linker, |call| call)
}

/// Which interfaces a component exports, and where its functions are.
pub(super) struct Links {
    describe: describe::GuestIndices,
    pub(super) authorization: Option<authorization::GuestIndices>,
    pub(super) routing: Option<routing::GuestIndices>,
    pub(super) events: Option<events::GuestIndices>,
    pub(super) timer_events: Option<timer_events::GuestIndices>,
    pub(super) connection_events: Option<connection_events::GuestIndices>,
}

impl Links {
    pub(super) fn new(pre: &InstancePre<Call>) -> Result<Links> {
        Ok(Links {
            describe: describe::GuestIndices::new(pre)?,
            authorization: authorization::GuestIndices::new(pre).ok(),
            routing: routing::GuestIndices::new(pre).ok(),
            events: events::GuestIndices::new(pre).ok(),
            timer_events: timer_events::GuestIndices::new(pre).ok(),
            connection_events: connection_events::GuestIndices::new(pre).ok(),
        })
    }

    /// Checks that what is exported has the types of the contract.
    fn check(&self, mut store: &mut Store<Call>, instance: &Instance) -> Result<()> {
        if let Some(it) = &self.authorization {
            it.load(&mut store, instance)?;
        }
        if let Some(it) = &self.routing {
            it.load(&mut store, instance)?;
        }
        if let Some(it) = &self.events {
            it.load(&mut store, instance)?;
        }
        if let Some(it) = &self.timer_events {
            it.load(&mut store, instance)?;
        }
        if let Some(it) = &self.connection_events {
            it.load(&mut store, instance)?;
        }
        Ok(())
    }
}

/// An export that is asked for although the component lacks it; callers look before.
fn missing() -> wasmtime::Error {
    wasmtime::Error::msg("the component does not export this")
}

/// Calls a fresh instance, once.
pub(super) async fn invoke(
    links: &Links,
    store: &mut Store<Call>,
    instance: &Instance,
    input: Input,
) -> Result<Result<Answer, Ending>> {
    let mut store = store;
    match input {
        Input::Describe => {
            links.check(store, instance)?;
            let info = links.describe.load(&mut store, instance)?.call_info(store).await?;
            Ok(Ok(Answer::Info(info)))
        }
        Input::Connect { who } => {
            let guest = links.authorization.as_ref().ok_or_else(missing)?.load(&mut store, instance)?;
            let answer = guest.call_connect(store, &client(&who)).await?;
            Ok(answer
                .map_err(refused)
                .map(|all| Answer::Memberships(all.into_iter().map(|one| (one.room, one.grant.into())).collect())))
        }
        Input::Join { who, room, params } => {
            let guest = links.authorization.as_ref().ok_or_else(missing)?.load(&mut store, instance)?;
            let params = params.as_ref().map(payload);
            let answer = guest.call_join(store, &client(&who), &room.as_str().to_owned(), params.as_ref()).await?;
            Ok(answer.map_err(refused).map(|it| Answer::Admission(it.grant.into(), it.cache_for)))
        }
        Input::Route { who, namespace, event } => {
            let guest = links.routing.as_ref().ok_or_else(missing)?.load(&mut store, instance)?;
            let answer = guest.call_route(store, who.as_ref().map(client).as_ref(), &namespace, &event).await?;
            Ok(answer.map_err(refused).map(Answer::Handlers))
        }
        Input::Handle { event } => {
            let guest = links.events.as_ref().ok_or_else(missing)?.load(&mut store, instance)?;
            let event = events::Event {
                name: event.name.as_ref().to_owned(),
                namespace: event.namespace.as_ref().to_owned(),
                data: payload(&event.data),
                sender: event.sender.as_ref().map(client),
            };
            Ok(done(guest.call_handle(store, &event).await?))
        }
        Input::Fire { timer } => {
            let guest = links.timer_events.as_ref().ok_or_else(missing)?.load(&mut store, instance)?;
            let timer = timer_events::Timer {
                name: timer.key.name.as_ref().to_owned(),
                due: timer.due,
                data: timer.data.as_ref().to_owned(),
            };
            Ok(done(guest.call_fire(store, &timer).await?))
        }
        Input::Connected { who, handshake } => {
            let guest = links.connection_events.as_ref().ok_or_else(missing)?.load(&mut store, instance)?;
            Ok(done(guest.call_connected(store, &client(&who), &handshake).await?))
        }
        Input::Disconnected { who, reason } => {
            let guest = links.connection_events.as_ref().ok_or_else(missing)?.load(&mut store, instance)?;
            Ok(done(guest.call_disconnected(store, &client(&who), &reason).await?))
        }
    }
}

fn client(who: &Client) -> wit::Client {
    wit::Client {
        connection: who.connection.as_str().to_owned(),
        subject: who.identity.subject.as_ref().to_owned(),
        claims: who.identity.claims.as_ref().to_owned(),
        namespace: who.namespace.as_ref().to_owned(),
    }
}

fn payload(data: &Payload) -> wit::Payload {
    wit::Payload {
        args: data.args.as_ref().to_owned(),
        attachments: data.attachments.iter().map(|bytes| bytes.to_vec()).collect(),
    }
}

fn refusal(why: &wit::Refusal) -> Refusal {
    host::rooms::refusal(&why.code, &why.message)
}

fn refused(why: wit::Refusal) -> Ending {
    Ending::Refused(refusal(&why))
}

fn done(end: Result<(), wit::Failure>) -> Result<Answer, Ending> {
    end.map(|()| Answer::Done).map_err(|failure| match failure {
        wit::Failure::Refused(why) => refused(why),
        wit::Failure::Retry(text) => Ending::Retry(text),
        wit::Failure::Fatal(text) => Ending::Fatal(text),
    })
}

impl From<wit::Grant> for Grant {
    fn from(grant: wit::Grant) -> Grant {
        Grant { publish: grant.publish, presence: grant.presence, history: grant.history }
    }
}

impl From<wit::Payload> for RawPayload {
    fn from(data: wit::Payload) -> RawPayload {
        RawPayload { args: data.args, attachments: data.attachments }
    }
}

impl From<Rejection> for wit::HostError {
    fn from(error: Rejection) -> wit::HostError {
        match error {
            Rejection::Denied => wit::HostError::Denied,
            Rejection::Invalid(text) => wit::HostError::Invalid(text),
            Rejection::TooLarge(limit) => wit::HostError::TooLarge(limit),
            Rejection::Quota(text) => wit::HostError::Quota(text),
            Rejection::Unavailable => wit::HostError::Unavailable,
        }
    }
}

/// What an import answers: the contract's result, or the end of the call.
type Reply<T> = Result<Result<T, wit::HostError>>;

fn reply<T, U: From<T>>(result: Result<T, Rejection>) -> Reply<U> {
    Ok(result.map(U::from).map_err(Into::into))
}

impl Call {
    /// Counts a call to the gateway; one too many ends the component's call, for a flood that is
    /// only answered would go on.
    fn enter(&mut self) -> Result<()> {
        self.host_calls = self.host_calls.saturating_add(1);
        if self.host_calls > self.work.limits.host_calls { Err(Flood.into()) } else { Ok(()) }
    }
}

impl wit::Host for Call {}

impl imports::invocation::Host for Call {
    fn id(&mut self) -> Result<String> {
        self.enter()?;
        Ok(host::invocation::id(self))
    }

    fn attempt(&mut self) -> Result<u32> {
        self.enter()?;
        Ok(host::invocation::attempt(self))
    }

    fn now(&mut self) -> Result<Millis> {
        self.enter()?;
        Ok(host::invocation::now(self))
    }

    fn remaining(&mut self) -> Result<Millis> {
        self.enter()?;
        Ok(host::invocation::remaining(self))
    }
}

impl imports::state::Host for Call {
    async fn get(&mut self, key: String) -> Reply<Option<Vec<u8>>> {
        self.enter()?;
        reply(host::state::get(self, &key).await.map(|value| value.map(Vec::from)))
    }

    async fn get_many(&mut self, keys: Vec<String>) -> Reply<Vec<Option<Vec<u8>>>> {
        self.enter()?;
        let values = host::state::get_many(self, &keys).await;
        reply(values.map(|all| all.into_iter().map(|value| value.map(Vec::from)).collect::<Vec<_>>()))
    }

    async fn list_keys(&mut self, prefix: String, after: Option<String>, limit: u32) -> Reply<imports::state::Page> {
        self.enter()?;
        let page = host::state::list_keys(self, &prefix, after.as_deref(), limit).await;
        reply(page.map(|(keys, next)| imports::state::Page { keys, next }))
    }

    fn put(&mut self, key: String, value: Vec<u8>, ttl: Option<Millis>) -> Reply<()> {
        self.enter()?;
        reply(host::state::put(self, &key, value, ttl))
    }

    fn delete(&mut self, key: String) -> Reply<()> {
        self.enter()?;
        reply(host::state::delete(self, &key))
    }

    fn add(&mut self, key: String, delta: i64) -> Reply<()> {
        self.enter()?;
        reply(host::state::add(self, &key, delta))
    }
}

impl imports::timers::Host for Call {
    fn set(&mut self, name: String, after: Millis, data: String) -> Reply<()> {
        self.enter()?;
        reply(host::timers::set(self, &name, after, &data))
    }

    fn cancel(&mut self, name: String) -> Reply<()> {
        self.enter()?;
        reply(host::timers::cancel(self, &name))
    }
}

impl imports::rooms::Host for Call {
    fn reply(&mut self, data: wit::Payload) -> Reply<()> {
        self.enter()?;
        reply(host::rooms::reply(self, data.into()))
    }

    fn publish(&mut self, to: String, event: String, data: wit::Payload) -> Reply<()> {
        self.enter()?;
        reply(host::rooms::publish(self, &to, &event, data.into(), Mode::ToAll))
    }

    fn publish_except(&mut self, to: String, event: String, data: wit::Payload, connection: String) -> Reply<()> {
        self.enter()?;
        reply(host::rooms::publish(self, &to, &event, data.into(), Mode::Except(&connection)))
    }

    fn publish_ephemeral(
        &mut self,
        to: String,
        event: String,
        data: wit::Payload,
        except: Option<String>,
    ) -> Reply<()> {
        self.enter()?;
        reply(host::rooms::publish(self, &to, &event, data.into(), Mode::Ephemeral(except.as_deref())))
    }

    fn join(&mut self, who: String, room: String, grant: wit::Grant) -> Reply<()> {
        self.enter()?;
        reply(host::rooms::join(self, &who, &room, grant.into()))
    }

    fn leave(&mut self, who: String, room: String) -> Reply<()> {
        self.enter()?;
        reply(host::rooms::leave(self, &who, &room))
    }

    fn disconnect(&mut self, who: String, why: wit::Refusal) -> Reply<()> {
        self.enter()?;
        reply(host::rooms::disconnect(self, &who, refusal(&why)))
    }
}

impl imports::presence::Host for Call {
    async fn count(&mut self, room: String) -> Reply<u32> {
        self.enter()?;
        reply(host::presence::count(self, &room).await)
    }

    async fn users(&mut self, room: String, after: Option<String>, limit: u32) -> Reply<Vec<String>> {
        self.enter()?;
        reply(host::presence::users(self, &room, after.as_deref(), limit).await)
    }

    async fn is_online(&mut self, subject: String) -> Reply<bool> {
        self.enter()?;
        reply(host::presence::is_online(self, &subject).await)
    }
}

impl imports::log::Host for Call {
    fn log(&mut self, level: imports::log::Level, message: String) -> Result<()> {
        self.enter()?;
        let level = match level {
            imports::log::Level::Trace => Level::Trace,
            imports::log::Level::Debug => Level::Debug,
            imports::log::Level::Info => Level::Info,
            imports::log::Level::Warn => Level::Warn,
            imports::log::Level::Error => Level::Error,
        };
        host::log::log(self, level, &message);
        Ok(())
    }
}

impl imports::config::Host for Call {
    fn get(&mut self, name: String) -> Result<Option<String>> {
        self.enter()?;
        Ok(host::config::get(self, &name))
    }
}

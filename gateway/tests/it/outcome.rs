//! "Exactly one outcome" rests on the check of what was read, and on nothing else.

use std::sync::Arc;

use postern::client::{Client, ConnectionId, Identity};
use postern::commit::{Effect, Position};
use postern::decision::backlog::Backlog;
use postern::decision::pipeline::Pipeline;
use postern::decision::plugin::{Host, HostSettings};
use postern::decision::{Decisions, Input};
use postern::engine::embedded::{EmbeddedEngine, Options};
use postern::engine::{Engine, Range};
use postern::event::{Event, Payload};
use postern::tenant::{CallLimits, PluginSettings, Role, TenantId};
use serde_json::{Value, json};

use crate::support::staged_engine::StagedEngine;
use crate::support::{components, guard, resident};

/// How often two residents answer at the same instant.
const ROUNDS: usize = 200;

fn client(subject: &str, claims: &Value) -> Client {
    let identity =
        Identity { subject: subject.into(), claims: claims.to_string().into(), expires_at_s: None, key: None };
    Client { connection: ConnectionId::random(), identity, namespace: "/".into() }
}

struct Society {
    engine: Arc<dyn Engine>,
    decisions: Decisions,
    pipeline: Pipeline,
}

impl Society {
    async fn new(engine: Arc<dyn Engine>) -> Society {
        let host = Host::new(HostSettings { threads: 2, instances: 64, ..HostSettings::default() }).unwrap();
        let tenant = TenantId::parse("gv").unwrap();
        let settings = PluginSettings {
            name: "visitor-approvals".into(),
            role: Role::Handler,
            component: "".into(),
            events: None,
            settings: Default::default(),
            instances: Default::default(),
            limits: Default::default(),
        };
        let component = std::fs::read(components().join("visitor-approvals.wasm")).unwrap();
        let plugin = host.load(&tenant, &settings, &CallLimits::default(), component.into()).await.unwrap();
        let mut pipeline = Pipeline::default();
        pipeline.add(Role::Handler, plugin, None);
        let decisions = Decisions::new(tenant, engine.clone(), CallLimits::default(), Backlog::of_node());
        Society { engine, decisions, pipeline }
    }

    async fn say(&self, sender: &Client, name: &str, data: &Value) -> Option<Value> {
        let event =
            Event { name: name.into(), namespace: "/".into(), data: Payload::one(data), sender: Some(sender.clone()) };
        let input = Input::Event { event: &event, may_publish: &|_| false };
        self.decisions.run(&self.pipeline, input).await.ok()?.reply?.first()
    }

    /// How many outcomes the log has for each visitor, and how many answers were accepted.
    async fn race(&self) -> (Vec<usize>, usize) {
        let ravi = client("ravi", &guard("gv"));
        let [asha, vikram] = ["asha", "vikram"].map(|name| client(name, &resident("gv", &["A-101"])));
        let mut accepted = 0;
        let mut visitors = Vec::new();
        for _ in 0..ROUNDS {
            let visitor = json!({ "flat_id": "A-101", "visitor_name": "Meera" });
            let id = self.say(&ravi, "visitor_create", &visitor).await.unwrap()["visitor_id"].clone();
            let approve = json!({ "visitor_id": id, "decision": "approve" });
            let deny = json!({ "visitor_id": id, "decision": "deny" });
            let answers =
                tokio::join!(self.say(&asha, "visitor_respond", &approve), self.say(&vikram, "visitor_respond", &deny));
            accepted += usize::from(answers.0.is_some()) + usize::from(answers.1.is_some());
            visitors.push(id.as_str().unwrap().to_owned());
        }
        let published = self.outcomes().await;
        let counts = visitors.iter().map(|id| published.iter().filter(|published| *published == id).count()).collect();
        (counts, accepted)
    }

    /// The visitors of all outcomes that were published to the guards.
    async fn outcomes(&self) -> Vec<String> {
        let follower = self.engine.follow(&self.decisions.tenant).await.unwrap();
        let start = Position { seq: 0, ..follower.position };
        let Range::Entries(entries) = self.engine.range(&self.decisions.tenant, start, 10_000).await.unwrap() else {
            panic!("the log is gone");
        };
        let publications = entries.iter().flat_map(|entry| &entry.effects).filter_map(|effect| match effect {
            Effect::Publish(publication) if publication.room.as_str() == "society:gv" => Some(publication),
            _ => None,
        });
        publications
            .filter(|publication| matches!(&*publication.event, "request_approved" | "request_denied"))
            .map(|publication| publication.data.first().unwrap()["visitor_id"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn embedded() -> Arc<dyn Engine> {
    EmbeddedEngine::in_memory(Options::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_residents_who_answer_at_the_same_instant_have_one_outcome_in_the_log() {
    let (outcomes, accepted) = Society::new(embedded()).await.race().await;
    assert!(outcomes.iter().all(|count| *count == 1), "{outcomes:?}");
    assert_eq!(accepted, ROUNDS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_check_of_what_was_read_there_would_be_two() {
    let (outcomes, accepted) = Society::new(StagedEngine::unchecked(embedded())).await.race().await;
    assert!(outcomes.contains(&2) && accepted > ROUNDS, "the check is not what makes the outcome one: {outcomes:?}");
}

//! What a tenant's plugins log, and how they fail, on all nodes: a JSON document a line.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::{Answer, answer};
use super::tenants::subject;
use super::{Asked, Denied};
use crate::catalog::{Actor, Catalog};
use crate::connection::server::Body;
use crate::gateway::Gateway;
use crate::tail::listening::Listener;
use crate::tail::{LINES_MAX, Line, Wanted, about_loss};
use crate::tenant::TenantId;

/// How many lines there are to begin with unless the call says otherwise.
const LINES: usize = 100;

/// How long one call follows; whoever looks calls again.
const FOLLOW_TIME: Duration = Duration::from_secs(600);

/// How long such an answer is silent at most: then an empty line says that it goes on.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Pieces that wait for whoever reads; then lines are lost in the journals, and told so.
const PIECES_MAX: usize = 16;

/// How long whoever reads may take none of them.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is asked whether whoever follows still may.
const JUDGED_AGAIN_INTERVAL: Duration = Duration::from_secs(15);

/// How often it is looked up which version an unknown digest is.
const LOOK_UP_INTERVAL: Duration = Duration::from_secs(5);

const NDJSON: &str = "application/x-ndjson";

/// `GET /tenants/{tenant}/logs`.
pub(super) async fn logs(asked: Asked) -> Result<Answer, Denied> {
    let tenant = asked.tenant()?.clone();
    subject(&asked.gateway, &tenant).await?;
    let wanted = Wanted {
        tenant: tenant.clone(),
        plugin: asked.query.text("plugin").map(str::to_owned),
        after_ms: asked.query.number("after")?.unwrap_or(0),
        limit: asked.query.limit(LINES, LINES_MAX)?,
        follow: asked.query.truth("follow")?,
    };
    let follow = wanted.follow;
    let mut listener = Listener::new(&asked.gateway, wanted).map_err(|error| Denied::busy(error.to_string()))?;
    let mut versions = Versions::new(&asked.gateway, tenant);
    let (lines, is_whole) = listener.collect().await;
    let mut text = versions.text(&lines).await;
    if !is_whole {
        let message = "not every node has answered: lines of others may be missing".into();
        text += &versions.text(&[about_loss(&asked.gateway.server_id, message)]).await;
    }
    if !follow {
        return Ok(answer(StatusCode::OK, NDJSON, text));
    }
    if let Some(stay) = &asked.stay {
        stay.for_another(FOLLOW_TIME + READ_TIMEOUT);
    }
    let (pieces, body) = mpsc::channel(PIECES_MAX);
    let draining = asked.gateway.tasks.draining().clone();
    let catalog = asked.gateway.catalog.clone();
    let actor = asked.actor;
    asked.gateway.tasks.spawn(async move {
        let follow = follow_on(listener, versions, text, pieces);
        let follow = async move {
            tokio::select! {
                () = follow => {}
                () = until_not_good(&catalog, &actor) => {}
            }
        };
        draining.run_until_cancelled(follow).await;
    });
    let mut answer = Response::new(Body::Pieces(body));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    Ok(answer)
}

/// Ends when whoever follows may not any more, or when that cannot be found out.
async fn until_not_good(catalog: &Catalog, actor: &Actor) {
    loop {
        tokio::time::sleep(JUDGED_AGAIN_INTERVAL).await;
        if catalog.still_good(actor).await.is_err() {
            return;
        }
    }
}

async fn follow_on(mut listener: Listener, mut versions: Versions, begin: String, pieces: mpsc::Sender<Bytes>) {
    let end = Instant::now() + FOLLOW_TIME;
    let mut text = begin;
    loop {
        // An empty piece would be none: the empty line also says that this goes on.
        if text.is_empty() {
            text.push('\n');
        }
        if pieces.send_timeout(text.into(), READ_TIMEOUT).await.is_err() {
            return;
        }
        let until = end.min(Instant::now() + SILENCE_MAX);
        text = match tokio::time::timeout_at(until, listener.next()).await {
            Ok(mut batch) => {
                if batch.lost > 0 {
                    let message = format!("{} lines came faster than they could be shown and are lost", batch.lost);
                    let server = batch.lines.first().map_or("", |line| &*line.server).to_owned();
                    batch.lines.insert(0, about_loss(&server, message));
                }
                versions.text(&batch.lines).await
            }
            Err(_) if until == end => return,
            Err(_) => String::new(),
        };
    }
}

/// Which version of a plugin a digest is.
struct Versions {
    gateway: Arc<Gateway>,
    tenant: TenantId,
    known: HashMap<(Arc<str>, Arc<str>), u64>,
    looked_up: Option<Instant>,
}

impl Versions {
    fn new(gateway: &Arc<Gateway>, tenant: TenantId) -> Versions {
        Versions { gateway: gateway.clone(), tenant, known: HashMap::new(), looked_up: None }
    }

    /// Lines as they are sent.
    async fn text(&mut self, lines: &[Line]) -> String {
        let is_unknown = |line: &Line| {
            !line.digest.is_empty() && !self.known.contains_key(&(line.plugin.clone(), line.digest.clone()))
        };
        let is_due = self.looked_up.is_none_or(|at| at.elapsed() > LOOK_UP_INTERVAL);
        if is_due && lines.iter().any(is_unknown) {
            self.look_up().await;
        }
        lines.iter().map(|line| format!("{}\n", self.shown(line))).collect()
    }

    async fn look_up(&mut self) {
        self.looked_up = Some(Instant::now());
        // What cannot be looked up is shown by its digest.
        for plugin in self.gateway.catalog.plugins(&self.tenant).await.unwrap_or_default() {
            for version in &plugin.versions {
                self.known.insert((plugin.name.clone(), version.digest.clone()), version.version);
            }
        }
    }

    fn shown(&self, line: &Line) -> Value {
        let number = self.known.get(&(line.plugin.clone(), line.digest.clone()));
        let version =
            number.map_or_else(|| json!(line.digest.chars().take(12).collect::<String>()), |number| json!(number));
        json!({
            "at_ms": line.at_ms,
            "server": line.server,
            "seq": line.seq,
            "plugin": line.plugin,
            "version": version,
            "level": line.level,
            "kind": line.kind,
            "message": line.message,
        })
    }
}

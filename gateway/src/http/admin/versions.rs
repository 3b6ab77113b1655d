//! Which version of a plugin runs.

use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::plugins::{record, shown, version};
use super::{Asked, Denied, Done, body, ok};
use crate::catalog::{Canary, ROLLOUT_DEADLINE};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Activation {
    version: u64,
    deadline_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RollBack {
    version: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedCanary {
    version: u64,
    percent: f64,
}

/// `GET …/versions`.
pub(super) async fn list(asked: Asked) -> Done {
    super::tenants::subject(&asked.gateway, asked.tenant()?).await?;
    let plugin = record(&asked).await?;
    let versions: Vec<Value> = plugin.versions.iter().map(version).collect();
    Ok(ok(json!({ "active": plugin.active, "versions": versions })))
}

/// `POST …/activate`.
pub(super) async fn activate(asked: Asked) -> Done {
    let (id, name) = (asked.tenant()?.clone(), asked.names.plugin.clone());
    let Activation { version, deadline_ms } = body::json(asked.body).await?;
    let deadline = deadline_ms.map_or(ROLLOUT_DEADLINE, Duration::from_millis);
    let rollout = asked.gateway.catalog.activate(&asked.actor, &id, &name, version, deadline).await?;
    let body = json!({ "version": version, "state": "waiting", "deadline_ms": rollout.deadline_ms });
    Ok((StatusCode::ACCEPTED, body))
}

/// `POST …/rollback`.
pub(super) async fn roll_back(asked: Asked) -> Done {
    let (id, name) = (asked.tenant()?.clone(), asked.names.plugin.clone());
    let RollBack { version } = body::json(asked.body).await?;
    let active = asked.gateway.catalog.roll_back(&asked.actor, &id, &name, version).await?;
    Ok(ok(json!({ "active": active })))
}

/// `PUT …/canary`.
pub(super) async fn put_canary(asked: Asked) -> Done {
    let (id, name) = (asked.tenant()?.clone(), asked.names.plugin.clone());
    let WantedCanary { version, percent } = body::json(asked.body).await?;
    let canary = Canary::of_percent(version, percent)
        .ok_or_else(|| Denied::invalid(format!("percent must be from 0 to 100, not {percent}")))?;
    let plugin = asked.gateway.catalog.set_canary(&asked.actor, &id, &name, Some(canary)).await?;
    Ok(ok(shown(&plugin, asked.actor.scope)))
}

/// `DELETE …/canary`.
pub(super) async fn delete_canary(asked: Asked) -> Done {
    let (id, name) = (asked.tenant()?, &asked.names.plugin);
    let plugin = asked.gateway.catalog.set_canary(&asked.actor, id, name, None).await?;
    Ok(ok(shown(&plugin, asked.actor.scope)))
}

/// `GET …/rollout`.
pub(super) async fn rollout(asked: Asked) -> Done {
    let (id, name) = (asked.tenant()?, &asked.names.plugin);
    let status = asked.gateway.catalog.rollout(id, name).await?;
    Ok(ok(json!(status)))
}

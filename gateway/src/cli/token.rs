//! `postern token`: a token for one of a tenant's clients.

use clap::Args;
use serde_json::{Map, Value, json};

use super::Failure;
use crate::config::{self, Environment, Flags};
use crate::decision::token::{TENANT_CLAIM, Verifier, shared_secret, sign};
use crate::tenant::{Secret, Tenant, TenantId, VerifyingKey};

/// The longest time that a token can be made for, in seconds: ten years.
const TTL_S_MAX: u64 = 10 * 366 * 86_400;

/// For whom, and saying what.
#[derive(Debug, Clone, Args)]
pub struct TokenArgs {
    /// Whose client it is [env: POSTERN_TENANT].
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// The client's subject.
    #[arg(long, value_name = "SUBJECT")]
    pub sub: String,
    /// One more claim; may be given several times.
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    pub claims: Vec<(String, Value)>,
    /// How long it is valid, in s, m, h or d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds)]
    pub ttl: u64,
    /// The id of the tenant's key to sign with [default: its first shared secret].
    #[arg(long, value_name = "ID")]
    pub key: Option<String>,
    /// Sign with the shared secret (HS256) in this variable: for tenants that have no file here, such as those of the admin
    /// API.
    #[arg(long, value_name = "VARIABLE", conflicts_with_all = ["tenants", "config"])]
    pub secret_env: Option<String>,
    /// The directory of the tenant files [env: POSTERN_TENANTS] [default: ./tenants].
    #[arg(long, value_name = "DIR")]
    pub tenants: Option<String>,
    /// The gateway's settings [env: POSTERN_CONFIG].
    #[arg(long, value_name = "FILE")]
    pub config: Option<String>,
}

/// What was made.
#[derive(Debug)]
pub struct Issued {
    /// The token.
    pub token: String,
    /// Why the gateway would refuse it now, if it would.
    pub refusal: Option<String>,
}

/// Makes a token, at `now_s` seconds after the Unix epoch.
///
/// # Errors
/// What is wrong with the arguments or with the tenant's file; no key to sign with.
pub fn token(args: &TokenArgs, env: &dyn Environment, now_s: u64) -> Result<Issued, Failure> {
    let named = args.tenant.clone().or_else(|| env.get("POSTERN_TENANT").filter(|name| !name.is_empty()));
    let named =
        named.ok_or_else(|| Failure::Usage("say whose client it is: --tenant NAME (or POSTERN_TENANT)".into()))?;
    let name = TenantId::parse(&named).map_err(|error| Failure::Usage(error.to_string()))?;
    let tenant = tenant(args, env, &name)?;

    let (key, secret) = signing_key(&tenant, args.key.as_deref())?;
    let claims = claims(args, &tenant, now_s)?;
    let failed = |error: &dyn std::fmt::Display| Failure::Failed(error.to_string());
    let token = sign(key.id.as_deref(), key.algorithm, &secret, &claims).map_err(|error| failed(&error))?;
    let verifier = Verifier::new(&tenant.id, &tenant.auth).map_err(|error| failed(&error))?;
    let refusal = verifier.verify(&token, now_s).err().map(|error| error.to_string());
    Ok(Issued { token, refusal })
}

/// As its file says, or made up of the one secret that is given.
fn tenant(args: &TokenArgs, env: &dyn Environment, name: &TenantId) -> Result<Tenant, Failure> {
    let Some(variable) = &args.secret_env else {
        let given = [("config", &args.config), ("tenants", &args.tenants)];
        let flags: Flags = given.into_iter().filter_map(|(flag, value)| Some((flag, value.clone()?))).collect();
        return config::load_tenant(&flags, env, name).map_err(|mistakes| {
            Failure::Usage(format!(
                "{mistakes}\na tenant of the admin API has no file here: give its secret with --secret-env"
            ))
        });
    };
    let secret = env.get(variable).filter(|secret| !secret.is_empty());
    let secret = secret
        .ok_or_else(|| Failure::Usage(format!("the environment variable `{variable}` is not set (--secret-env)")))?;
    let mut key = json!({ "algorithm": "HS256", "secret": secret });
    if let Some(id) = &args.key {
        key["id"] = id.as_str().into();
    }
    let settings = json!({ "auth": { "keys": [key] } });
    let (tenant, _) = config::tenant_from_json(name, &settings, false)
        .map_err(|mistakes| Failure::Usage(format!("--secret-env {variable}: {mistakes}")))?;
    Ok(tenant)
}

fn signing_key<'a>(tenant: &'a Tenant, id: Option<&str>) -> Result<(&'a VerifyingKey, Secret), Failure> {
    let wanted = |key: &&VerifyingKey| id.is_none() || key.id.as_deref() == id;
    let found = tenant.auth.all_keys().filter(wanted).find_map(|key| Some((key, shared_secret(key)?)));
    found.ok_or_else(|| match id {
        Some(id) => Failure::Failed(format!("the tenant {} has no shared secret (HS*) with the id {id:?}", tenant.id)),
        None => Failure::Failed(format!(
            "the tenant {} has no shared secret (HS*): its tokens come from whoever holds the private key",
            tenant.id
        )),
    })
}

fn claims(args: &TokenArgs, tenant: &Tenant, now_s: u64) -> Result<Map<String, Value>, Failure> {
    let auth = &tenant.auth;
    let mut claims = Map::new();
    claims.insert("iat".into(), now_s.into());
    claims.insert("exp".into(), now_s.saturating_add(args.ttl).into());
    // What the tenant demands of all tokens goes without saying.
    if let Some(audience) = auth.audiences.first() {
        claims.insert("aud".into(), audience.as_str().into());
    }
    if let Some(issuer) = auth.issuers.first() {
        claims.insert("iss".into(), issuer.as_str().into());
    }
    for (name, value) in &args.claims {
        if name == TENANT_CLAIM || *name == auth.subject_claim {
            return Err(Failure::Usage(format!("the claim {name:?} comes from --tenant or --sub, not from --claim")));
        }
        claims.insert(name.clone(), value.clone());
    }
    claims.insert(TENANT_CLAIM.into(), tenant.id.as_str().into());
    claims.insert(auth.subject_claim.clone(), args.sub.as_str().into());
    Ok(claims)
}

/// `name=value`.
fn claim(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            Ok((name.into(), serde_json::from_str(value).unwrap_or_else(|_| Value::from(value))))
        }
        _ => Err("a claim has the form NAME=VALUE".into()),
    }
}

/// `90s`, `15m`, `1h`, `7d`.
fn seconds(text: &str) -> Result<u64, String> {
    let parsed = || {
        let unit = text.chars().next_back()?;
        let each: u64 = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return None,
        };
        text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(each)
    };
    let seconds = parsed().filter(|seconds| (1..=TTL_S_MAX).contains(seconds));
    seconds.ok_or_else(|| "a time is a number and its unit, from 1s to 3660d: 90s, 15m, 1h, 7d".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_is_json_is_taken_as_json() {
        assert_eq!(claim("n=7"), Ok(("n".into(), Value::from(7))));
        assert_eq!(claim("flats=[\"A-101\"]"), Ok(("flats".into(), serde_json::json!(["A-101"]))));
        assert_eq!(claim("role=guard"), Ok(("role".into(), Value::from("guard"))));
        assert_eq!(claim("formula=a=b"), Ok(("formula".into(), Value::from("a=b"))));
        assert!(claim("role").is_err());
        assert!(claim("=x").is_err());
    }

    #[test]
    fn a_time_needs_its_unit_and_stays_within_ten_years() {
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("15m"), Ok(900));
        assert_eq!(seconds("1h"), Ok(3_600));
        assert_eq!(seconds("7d"), Ok(604_800));
        for wrong in ["", "h", "1", "0s", "-1h", "1y", "99999d", "18446744073709551615d", "1µ"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_of_the_environment_signs_for_a_tenant_without_a_file() {
        let args = |variable: &str| TokenArgs {
            tenant: Some("acme".into()),
            sub: "asha".into(),
            claims: Vec::new(),
            ttl: 60,
            key: Some("k1".into()),
            secret_env: Some(variable.into()),
            tenants: None,
            config: None,
        };
        let secret = "0123456789abcdef0123456789abcdef";
        let env: std::collections::BTreeMap<String, String> =
            [("GOOD", secret), ("SHORT", "hunter2")].map(|(name, value)| (name.into(), value.into())).into();
        let issued = token(&args("GOOD"), &env, 1_000).unwrap();
        assert_eq!(issued.refusal, None);
        let short = token(&args("SHORT"), &env, 1_000).unwrap_err().to_string();
        assert!(short.contains("at least 32") && !short.contains("hunter2"), "{short}");
        assert!(token(&args("NOT_SET"), &env, 1_000).unwrap_err().to_string().contains("`NOT_SET` is not set"));
    }
}

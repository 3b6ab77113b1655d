//! Where Redis is, as `REDIS_URL` says it.

use std::fmt;

use percent_encoding::percent_decode_str;

/// Redis's port, where the URL names none.
const REDIS_PORT: u16 = 6_379;

/// A Sentinel's port, where the URL names none.
const SENTINEL_PORT: u16 = 26_379;

/// The forms there are, for whoever wrote something else.
pub(crate) const FORMS: &str = "redis://[user:password@]host[:port][/database], \
    redis+sentinel://[user:password@]host[:port],…/service[/database], \
    redis+cluster://[user:password@]host[:port],…, or rediss instead of redis for TLS";

/// Host and port of one server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// How the servers belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// One server, which is the master.
    Standalone,
    /// The servers named are Sentinels, which know the master of this service.
    Sentinel(String),
    /// The servers named are some of a cluster's, which know the others.
    Cluster,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Standalone => f.write_str("standalone"),
            Kind::Sentinel(service) => write!(f, "sentinel ({service})"),
            Kind::Cluster => f.write_str("cluster"),
        }
    }
}

/// A URL that was understood.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) kind: Kind,
    /// At least one; exactly one when standalone.
    pub(super) servers: Vec<Address>,
    pub(super) tls: bool,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    /// 0 in a cluster.
    pub(super) database: u32,
}

/// Without user and password.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.addresses())
    }
}

impl Target {
    /// Reads a URL. What is wrong is said without repeating any of it: it may hold a password.
    pub(super) fn parse(url: &str) -> Result<Target, String> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| format!("it must be {FORMS}"))?;
        let (transport, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        let tls = match transport {
            "redis" => false,
            "rediss" => true,
            _ => return Err(format!("it must be {FORMS}")),
        };
        if rest.contains(['?', '#']) {
            return Err("nothing may follow the path".into());
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let default_port = if kind == "sentinel" { SENTINEL_PORT } else { REDIS_PORT };
        let servers = hosts.split(',').map(|host| address(host, default_port)).collect::<Result<Vec<_>, _>>()?;
        let (kind, database) = match kind {
            "" if servers.len() > 1 => return Err("only redis+sentinel and redis+cluster take several servers".into()),
            "" => (Kind::Standalone, database(path)?),
            "sentinel" => {
                let (service, rest) = path.split_once('/').unwrap_or((path, ""));
                let service = decoded(service)?.ok_or("it names no service: redis+sentinel://host/service")?;
                (Kind::Sentinel(service), database(rest)?)
            }
            "cluster" if matches!(path, "" | "0") => (Kind::Cluster, 0),
            "cluster" => return Err("a cluster has database 0 only".into()),
            _ => return Err(format!("it must be {FORMS}")),
        };
        Ok(Target { kind, servers, tls, user: decoded(user)?, password: decoded(password)?, database })
    }

    /// Host and port of each server named, for log lines.
    pub(super) fn addresses(&self) -> String {
        let servers: Vec<String> = self.servers.iter().map(ToString::to_string).collect();
        servers.join(", ")
    }
}

fn address(text: &str, default_port: u16) -> Result<Address, String> {
    let bad_port = || "a port must be a number from 1 to 65535".to_owned();
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or_else(bad_port)?)),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        None => default_port,
        Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(bad_port)?,
    };
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("it names no host".into());
    }
    Ok(Address { host: host.into(), port })
}

fn database(text: &str) -> Result<u32, String> {
    if text.is_empty() { Ok(0) } else { text.parse().map_err(|_| "the database must be a number".into()) }
}

/// `None` for nothing.
fn decoded(text: &str) -> Result<Option<String>, String> {
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| "it is no UTF-8 when decoded".to_owned())?;
    Ok(Some(decoded.into_owned()).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> (Kind, String, bool, u32) {
        let target = Target::parse(url).unwrap();
        (target.kind.clone(), target.addresses(), target.tls, target.database)
    }

    #[test]
    fn each_form_is_understood() {
        assert_eq!(parse("redis://r"), (Kind::Standalone, "r:6379".into(), false, 0));
        assert_eq!(parse("redis://[::1]:7000/3"), (Kind::Standalone, "[::1]:7000".into(), false, 3));
        assert_eq!(parse("rediss://r:1/"), (Kind::Standalone, "r:1".into(), true, 0));
        let service = Kind::Sentinel("my master".into());
        assert_eq!(parse("redis+sentinel://a,b:2/my%20master/4"), (service, "a:26379, b:2".into(), false, 4));
        assert_eq!(parse("rediss+cluster://a:1,b"), (Kind::Cluster, "a:1, b:6379".into(), true, 0));
    }

    #[test]
    fn user_and_password_may_hold_anything_when_encoded() {
        let target = Target::parse("redis://us%40er:p%3A%2Fw@d@h:1").unwrap();
        assert_eq!((target.user.as_deref(), target.password.as_deref()), (Some("us@er"), Some("p:/w@d")));
        let target = Target::parse("redis://:secret@h").unwrap();
        assert_eq!((target.user.as_deref(), target.password.as_deref()), (None, Some("secret")));
        assert!(!format!("{target:?}").contains("secret"));
    }

    #[test]
    fn anything_else_is_refused_without_being_repeated() {
        for url in [
            "secret",
            "http://user:secret@host",
            "redis+other://secret@h",
            "redis://u:secret@",
            "redis://u:secret@h:0",
            "redis://u:secret@h:x",
            "redis://u:secret@h:70000",
            "redis://u:secret@h/x",
            "redis://u:secret@h/0?a=b",
            "redis://u:secret@a,b",
            "redis+sentinel://u:secret@a,b",
            "redis+cluster://u:secret@a,/1",
            "redis+cluster://u:secret@a/1",
            "redis://u:secret%ff@a",
        ] {
            let why = Target::parse(url).unwrap_err();
            assert!(!why.contains("secret"), "{url}: {why}");
        }
    }
}

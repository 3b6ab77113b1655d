//! The admin API as the command line calls it.

mod link;

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use hyper::{Method, StatusCode, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use self::link::{Link, LinkError};
use super::Failure;
use crate::config::Environment;

/// Where the gateway is, unless something else is said.
const URL: &str = "http://127.0.0.1:3000";

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long an upload may take, its checks included.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(360);

/// What stands for itself in a part of a path or query.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Where the gateway is, and how the answer is shown.
#[derive(Debug, Clone, Default, Args)]
pub struct RemoteArgs {
    /// Where the gateway is [env: POSTERN_URL] [default: http://127.0.0.1:3000].
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Read the token from this file [default: the variable POSTERN_ADMIN_TOKEN].
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<std::path::PathBuf>,
    /// Send the token without TLS to a gateway that is not on this machine.
    #[arg(long)]
    pub insecure_http: bool,
    /// Trust the certificate authorities in this file (PEM) instead of the system's, over https [env: POSTERN_CA_FILE].
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<std::path::PathBuf>,
    /// Print JSON, errors included.
    #[arg(long)]
    pub json: bool,
}

/// The same for one tenant.
#[derive(Debug, Clone, Default, Args)]
pub struct TenantArgs {
    /// Whose [env: POSTERN_TENANT] [default: the token's own tenant].
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// Where the gateway is.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// A gateway's admin API.
pub struct Remote {
    link: Link,
    base: String,
    token: Option<String>,
    /// Is JSON printed instead of text?
    pub json: bool,
}

/// Something to call.
struct Call<'a> {
    method: Method,
    path: &'a str,
    content_type: &'static str,
    headers: &'a [(&'static str, String)],
    body: Bytes,
    timeout: Duration,
}

impl Remote {
    /// The gateway that arguments and environment name.
    ///
    /// # Errors
    /// The URL is none, or the token's file cannot be read.
    pub fn new(args: &RemoteArgs, env: &dyn Environment) -> Result<Remote, Failure> {
        let set = |name| env.get(name).filter(|value: &String| !value.is_empty());
        let url = args.url.clone().or_else(|| set("POSTERN_URL")).unwrap_or_else(|| URL.into());
        let base = url.trim_end_matches('/').to_owned();
        let uri: Option<Uri> = base.parse().ok();
        let scheme = uri.as_ref().and_then(Uri::scheme_str);
        if !matches!(scheme, Some("http" | "https")) || uri.as_ref().and_then(Uri::host).is_none() {
            return Err(Failure::Usage(format!(
                "{url:?} is no URL of a gateway (--url, POSTERN_URL): give one such as {URL} or https://gateway.example.com"
            )));
        }
        if let Some(uri) = &uri {
            may_be_called(uri, args.insecure_http)?;
        }
        let token = match &args.token_file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| Failure::Usage(format!("{} (--token-file): {error}", path.display())))?;
                Some(text.trim().to_owned())
            }
            None => set("POSTERN_ADMIN_TOKEN"),
        };
        let ca_file = args.ca_file.clone().or_else(|| set("POSTERN_CA_FILE").map(Into::into));
        Ok(Remote { link: Link::new(ca_file).map_err(Failure::Failed)?, base, token, json: args.json })
    }

    /// As [`new`](Remote::new), with the tenant: the one that is named, or the token's own.
    ///
    /// # Errors
    /// As [`new`](Remote::new); no tenant is named and the token is no tenant's.
    pub fn of_tenant(args: &TenantArgs, env: &dyn Environment) -> Result<(Remote, String), Failure> {
        let remote = Remote::new(&args.remote, env)?;
        let named = args.tenant.clone().or_else(|| env.get("POSTERN_TENANT").filter(|name| !name.is_empty()));
        if let Some(tenant) = named {
            return Ok((remote, tenant));
        }
        let own = remote.get("/whoami")?;
        match own["tenant"].as_str() {
            Some(tenant) => Ok((remote, tenant.to_owned())),
            None => Err(Failure::Usage(
                "this token is good for all tenants: say which with --tenant NAME (or POSTERN_TENANT)".into(),
            )),
        }
    }

    /// Reads something.
    ///
    /// # Errors
    /// What went wrong, and what to do.
    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        self.send(Method::GET, path, None)
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    /// What went wrong, and what to do.
    pub fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let content_type = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let call = Call { method, path, content_type, headers: &[], body, timeout: ANSWER_TIMEOUT };
        self.call(call, &mut |_| {})
    }

    /// Sends a component; `progress` hears how many bytes have gone.
    ///
    /// # Errors
    /// What went wrong, and what to do.
    pub fn upload(
        &self,
        path: &str,
        headers: &[(&'static str, String)],
        component: Bytes,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Value, Failure> {
        let timeout = UPLOAD_TIMEOUT;
        let content_type = "application/wasm";
        self.call(Call { method: Method::POST, path, content_type, headers, body: component, timeout }, progress)
    }

    fn call(&self, call: Call<'_>, progress: &mut dyn FnMut(usize)) -> Result<Value, Failure> {
        let request = self.request(&call)?;
        let answered = self.link.whole(request, call.body, call.timeout, progress);
        let (status, body) = answered.map_err(|error| self.unreachable(&error))?;
        let answer = if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&body) };
        match answer {
            Ok(answer) if status.is_success() => Ok(answer),
            Ok(refusal) => Err(self.refused(status, &refusal)),
            Err(_) => Err(self.refused(status, &Value::Null)),
        }
    }

    /// Reads lines of JSON until there are no more or `each` has enough (`false`).
    ///
    /// # Errors
    /// What went wrong, and what to do.
    pub fn lines(&self, path: &str, each: &mut dyn FnMut(Value) -> bool) -> Result<(), Failure> {
        let method = Method::GET;
        let (headers, body, timeout) = (&[], Bytes::new(), ANSWER_TIMEOUT);
        let call = Call { method, path, content_type: "application/json", headers, body, timeout };
        let request = self.request(&call)?;
        let mut each = |line: &[u8]| match serde_json::from_slice(line) {
            Ok(value) => each(value),
            // An empty line says that the gateway is still there.
            Err(_) => true,
        };
        match self.link.lines(request, call.timeout, &mut each).map_err(|error| self.unreachable(&error))? {
            None => Ok(()),
            Some((status, body)) => Err(self.refused(status, &serde_json::from_slice(&body).unwrap_or_default())),
        }
    }

    fn request(&self, call: &Call<'_>) -> Result<hyper::http::request::Builder, Failure> {
        let uri: Uri = format!("{}/admin/v1{}", self.base, call.path)
            .parse()
            .map_err(|error| Failure::Usage(format!("{}: {error}", call.path)))?;
        let mut request = hyper::Request::builder().method(call.method.clone()).uri(uri);
        request = request.header("content-type", call.content_type);
        for (name, value) in call.headers {
            request = request.header(*name, value);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        Ok(request)
    }

    fn unreachable(&self, error: &LinkError) -> Failure {
        let advice = match error {
            LinkError::Dial(_) => "is it running there? Say where it is with --url or POSTERN_URL",
            LinkError::Tls(_) => {
                "if its certificate is of an authority of your own, name that one's file with --ca-file or POSTERN_CA_FILE"
            }
            LinkError::Timeout(_) | LinkError::Broken(_) => "look whether it was done before you try again",
        };
        self.failure(
            &json!({ "code": "unreachable", "message": format!("{} does not answer: {error}", self.base) }),
            advice,
        )
    }

    fn refused(&self, status: StatusCode, refusal: &Value) -> Failure {
        let error = match refusal.get("error").filter(|error| error["code"].is_string()) {
            Some(error) => error.clone(),
            None => {
                let message = format!("{} answered {status}, which is not how the admin API answers", self.base);
                json!({ "code": "not_an_admin_api", "message": message })
            }
        };
        let code = error["code"].as_str().unwrap_or_default();
        self.failure(&error, advice(code, self.token.is_some()))
    }

    fn failure(&self, error: &Value, advice: &str) -> Failure {
        if self.json {
            let mut error = error.clone();
            error["advice"] = advice.into();
            return Failure::Failed(plain_json(&json!({ "error": error }).to_string()));
        }
        let mistakes: Vec<_> = error["mistakes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut text = match mistakes.len() {
            // The message is the only mistake there is.
            0 | 1 => plain(error["message"].as_str().unwrap_or_default()),
            count => format!("{count} mistakes:"),
        };
        for mistake in mistakes.iter().filter(|_| mistakes.len() > 1) {
            let _ = write!(text, "\n  {}", plain(mistake));
        }
        if !advice.is_empty() {
            let _ = write!(text, "\n{advice}");
        }
        Failure::Failed(text)
    }
}

/// Is it an address to which a token may go?
fn may_be_called(uri: &Uri, insecure_http: bool) -> Result<(), Failure> {
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        let text = "the URL of the gateway (--url, POSTERN_URL) holds a user or a password: leave that out; the token \
                    goes into POSTERN_ADMIN_TOKEN or --token-file";
        return Err(Failure::Usage(text.into()));
    }
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    if uri.scheme_str() == Some("http") && !is_here && !insecure_http {
        return Err(Failure::Usage(format!(
            "http://{host} (--url, POSTERN_URL) would send the token in the clear: use https, or --insecure-http if \
             nobody listens on the way"
        )));
    }
    Ok(())
}

/// What to do about a refusal.
fn advice(code: &str, has_token: bool) -> &'static str {
    match code {
        "unauthorized" if !has_token => {
            "POSTERN_ADMIN_TOKEN is not set in this shell: it is what the gateway was started with, or a token that an operator made with `postern admin token create`"
        }
        "unauthorized" => {
            "the token in POSTERN_ADMIN_TOKEN may be of another gateway, be over or be revoked: ask an operator for a new one"
        }
        "admin_disabled" => "start the gateway with POSTERN_ADMIN_TOKEN (32 characters or more) and use the same here",
        "forbidden" => "`postern admin whoami` shows what your token is good for",
        "not_found" => "`postern tenant list` and `postern plugin list` show what there is",
        "read_only" => {
            "change the file on the gateway's machines and restart them, or make a tenant of another name over the API"
        }
        "conflict" => "nothing was changed; `postern plugin list` and `postern admin audit` show how things are",
        "exists" => "take another name, or look at the one that there is",
        "invalid" => "nothing was changed: put it right and repeat",
        "too_large" | "too_slow" => "nothing was changed",
        "limit" => "delete what is not needed any more, or ask an operator",
        "outcome_unknown" => "`postern admin audit` shows whether it was done",
        "engine_unavailable" => "nothing was changed, as far as is known: repeat in a moment",
        "busy" => "repeat in a moment",
        "not_an_admin_api" => "is POSTERN_URL (or --url) that of a Postern gateway, without a path?",
        _ => "",
    }
}

/// A part of a path, or a value in a query.
pub fn part(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// Text from elsewhere, so that it does nothing to a terminal: control characters are shown, not sent.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || turns(c) { plain.extend(c.escape_default()) } else { plain.push(c) }
    }
    plain
}

/// JSON that does nothing to a terminal, and says the same.
pub fn plain_json(json: &str) -> String {
    let mut plain = String::with_capacity(json.len());
    for c in json.chars() {
        // JSON itself escapes those below; these stand in texts only, and each is one unit of UTF-16.
        if matches!(c, '\u{7f}'..='\u{9f}') || turns(c) {
            let _ = write!(plain, "\\u{:04x}", u32::from(c));
        } else {
            plain.push(c);
        }
    }
    plain
}

/// Does it change where text stands or which way it runs?
fn turns(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Is somebody watching what is told beside the results?
pub fn is_watched() -> bool {
    std::io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_url_that_is_none_is_refused_with_an_example() {
        for wrong in ["gateway", "ftp://gateway", "http://", "127.0.0.1:3000"] {
            let args = RemoteArgs { url: Some(wrong.into()), ..RemoteArgs::default() };
            let Err(Failure::Usage(text)) = Remote::new(&args, &BTreeMap::new()) else { panic!("{wrong} was taken") };
            assert!(text.contains("POSTERN_URL"), "{text}");
        }
    }

    #[test]
    fn a_token_goes_in_the_clear_to_this_machine_only() {
        let new = |url: &str, insecure_http| {
            Remote::new(&RemoteArgs { url: Some(url.into()), insecure_http, ..RemoteArgs::default() }, &BTreeMap::new())
        };
        for url in ["http://127.0.0.1:3000", "http://localhost", "http://[::1]:3000", "https://gateway.example.com"] {
            assert!(new(url, false).is_ok(), "{url}");
        }
        for url in ["http://gateway:3000", "http://10.0.0.1", "http://127.0.0.1.example.com", "http://[2001:db8::1]"] {
            let Err(Failure::Usage(text)) = new(url, false) else { panic!("{url} was taken") };
            assert!(text.contains("--insecure-http") && new(url, true).is_ok(), "{text}");
        }
        for url in ["https://eve:hunter2@gateway", "http://127.0.0.1@gateway", "http://a:hunter2@127.0.0.1"] {
            let Err(Failure::Usage(text)) = new(url, true) else { panic!("{url} was taken") };
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn json_does_nothing_to_a_terminal_and_says_the_same() {
        let value = json!({ "k\u{9b}": "\u{7f}\u{85}\u{9f}\u{202e}\u{2066}\u{1b}\u{a0}größer 日本 😀" });
        for text in [plain_json(&value.to_string()), plain_json(&format!("{value:#}"))] {
            assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || turns(c)), "{text:?}");
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }
    }

    #[test]
    fn text_from_elsewhere_does_nothing_to_a_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\u{9b}c\r\nd\u{202e}e"), "a\\u{1b}[2Jb\\u{9b}c\\r\\nd\\u{202e}e");
        assert_eq!(plain("größer 日本"), "größer 日本");
    }

    #[test]
    fn names_are_parts_of_a_path_whatever_is_in_them() {
        assert_eq!(part("../a b/ä?x=1"), "..%2Fa%20b%2F%C3%A4%3Fx%3D1");
    }
}

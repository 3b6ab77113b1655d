//! Every way a connection ends: one closed list.
//!
//! Codes follow RFC 6455 §7.4.2 (4000–4999 are the application's): 4000–4499 say "come
//! back", 4500–4999 say "do not, before something has changed".

use std::time::Duration;

/// Whose doing an ending is; the log level and the error metric follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// What the client sent or did not send.
    Client,
    /// The tenant's settings, limits or component.
    Tenant,
    /// The gateway or its operator.
    Gateway,
    /// Nobody: an ordinary end.
    Nobody,
}

macro_rules! endings {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $word:literal, $reconnect:literal, $blame:ident;)+) => {
        /// Why a connection ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Close { $($(#[doc = $doc])+ $name,)+ }

        impl Close {
            /// All of them, for tables and tests.
            pub const ALL: &'static [Close] = &[$(Close::$name,)+];

            /// The WebSocket close code.
            pub fn code(self) -> u16 { match self { $(Close::$name => $code,)+ } }

            /// The machine-readable word: the close frame's reason and the metric's label.
            pub fn word(self) -> &'static str { match self { $(Close::$name => $word,)+ } }

            /// May the client come back by itself?
            pub fn reconnect(self) -> bool { match self { $(Close::$name => $reconnect,)+ } }

            /// Whose doing it is.
            pub fn blame(self) -> Blame { match self { $(Close::$name => Blame::$blame,)+ } }

            /// What it means, for people.
            pub fn meaning(self) -> &'static str {
                match self { $(Close::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

endings! {
    /// The client closed the connection.
    ClientLeft = 1000, "client_left", true, Nobody;
    /// The client's TCP connection broke.
    ConnectionLost = 1006, "connection_lost", true, Nobody;
    /// The node stops; other nodes, or the same one in a moment, take the client.
    Shutdown = 4000, "shutdown", true, Gateway;
    /// The client did not take what was sent to it fast enough.
    Slow = 4001, "slow", true, Client;
    /// The client did not answer pings in time.
    PingTimeout = 4002, "ping_timeout", true, Client;
    /// The engine could not be reached while the connection was set up.
    EngineUnavailable = 4003, "engine_unavailable", true, Gateway;
    /// The tenant's authorizer could not answer: it failed, or too many calls wait.
    AuthorizerUnavailable = 4004, "authorizer_unavailable", true, Tenant;
    /// The token ended and no fresh one came in time; come back with a new token.
    TokenExpired = 4005, "token_expired", true, Client;
    /// The other nodes counted this connection as gone: its node did not answer in time, or the client came
    /// back elsewhere.
    Fenced = 4006, "fenced", true, Gateway;
    /// The gateway or the tenant has as many connections as it may.
    ServerFull = 4007, "server_full", true, Gateway;
    /// No valid handshake within the time allowed.
    HandshakeTimeout = 4008, "handshake_timeout", true, Client;
    /// The token is missing, malformed, not signed by a key of the tenant, or not valid now.
    Unauthorized = 4500, "unauthorized", false, Client;
    /// The tenant's authorizer refused the connection.
    Forbidden = 4501, "forbidden", false, Tenant;
    /// The user has as many connections as one user may.
    ConnectionLimit = 4502, "connection_limit", false, Client;
    /// A message was larger than the tenant allows.
    MessageTooLarge = 4503, "message_too_large", false, Client;
    /// The client broke the protocol.
    ProtocolError = 4504, "protocol_error", false, Client;
    /// A handler or an operator ended the connection.
    Disconnected = 4505, "disconnected", false, Tenant;
    /// The operator has disabled or deleted the tenant.
    TenantDisabled = 4506, "tenant_disabled", false, Gateway;
}

/// What is added to the reconnect advice so that clients do not come back all at once.
pub const RECONNECT_JITTER_MAX: Duration = Duration::from_secs(5);

/// A random time from nothing to `max`, so that many do not do the same thing at once.
pub fn jitter(max: Duration) -> Duration {
    // Without randomness everybody waits the same: worse, but no reason to fail.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    max.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_ending_has_a_code_and_a_word_of_its_own_and_the_code_says_whether_to_come_back() {
        let mut seen = HashSet::new();
        for close in Close::ALL {
            assert!(seen.insert(close.code().to_string()), "{close:?}");
            assert!(seen.insert(close.word().to_owned()), "{close:?}");
            if close.code() >= 4000 {
                assert_eq!(close.reconnect(), close.code() < 4500, "{close:?}");
            }
        }
    }
}

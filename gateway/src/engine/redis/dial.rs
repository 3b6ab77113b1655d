//! How a connection is made: to which server, with which user, with TLS or without.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::io::tcp::TcpSettings;
use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo as _, ProtocolVersion, PushInfo, PushKind,
    RedisConnectionInfo, RedisError, TlsCertificates,
};
use tokio_util::sync::CancellationToken;

use super::sentinel;
use super::url::{Address, Kind, Target};
use crate::engine::EngineError;

/// How long a TCP connection may take, with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a command may take before its outcome counts as unknown.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Commands that wait to be written; more callers wait for room.
const COMMANDS_WAITING_MAX: usize = 1_024;

/// Bytes that were written and not acknowledged make the connection break after this long.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(5);

/// What is the same for all connections.
#[derive(Clone)]
pub(super) struct Dialer {
    pub(super) target: Arc<Target>,
    certificates: TlsCertificates,
}

impl Dialer {
    /// Reads the URL and the certificates of the authority that signed the servers', if a file of them is named.
    /// Errors do not repeat the URL: it may hold a password.
    pub(super) fn new(url: &str, ca_file: Option<&Path>) -> Result<Dialer, EngineError> {
        let unusable = |why: String| EngineError::Unavailable(format!("the Redis URL is not usable: {why}"));
        let target = Target::parse(url).map_err(unusable)?;
        let root_cert = ca_file.map(std::fs::read).transpose().map_err(|error| {
            let path = ca_file.unwrap_or(Path::new("")).display();
            EngineError::Unavailable(format!("cannot read {path} (setting redis_ca_file): {error}"))
        })?;
        let dialer = Dialer { target: Arc::new(target), certificates: TlsCertificates { client_tls: None, root_cert } };
        // What is wrong with the certificates is to be known at once.
        dialer.client(&dialer.target.servers[0], true).map_err(|error| unusable(error.to_string()))?;
        Ok(dialer)
    }

    /// A connection whose pushes go to `push`, which must not block and answers whether the connection is
    /// still good. The token is cancelled when it is not, or when it broke.
    pub(super) async fn dial(
        &self,
        address: &Address,
        push: impl Fn(PushInfo) -> bool + Send + Sync + 'static,
    ) -> Result<(MultiplexedConnection, CancellationToken), RedisError> {
        let broken = CancellationToken::new();
        let breaks = broken.clone();
        let config = config().set_push_sender(move |info: PushInfo| -> Result<(), ::redis::aio::SendError> {
            if info.kind == PushKind::Disconnection || !push(info) {
                breaks.cancel();
            }
            Ok(())
        });
        let connection = self.client(address, true)?.get_multiplexed_async_connection_with_config(&config).await?;
        Ok((connection, broken))
    }

    /// A connection for a few questions.
    pub(super) async fn ask(&self, address: &Address) -> Result<MultiplexedConnection, RedisError> {
        self.client(address, true)?.get_multiplexed_async_connection_with_config(&config()).await
    }

    /// A connection to a Sentinel: without a login, and with the servers' where that is asked for.
    pub(super) async fn ask_sentinel(&self, address: &Address) -> Result<MultiplexedConnection, RedisError> {
        let mut connection = self.client(address, false)?.get_multiplexed_async_connection_with_config(&config()).await;
        let refused = match &mut connection {
            Ok(open) => ::redis::cmd("PING").exec_async(open).await.is_err(),
            Err(_) => true,
        };
        match (&self.target.password, refused) {
            (Some(password), true) => {
                let mut settings = self.settings(false).set_password(password);
                if let Some(user) = &self.target.user {
                    settings = settings.set_username(user);
                }
                self.open(address, settings)?.get_multiplexed_async_connection_with_config(&config()).await
            }
            _ => connection,
        }
    }

    /// The master to be dialled: the one named, or the one that the Sentinels name.
    pub(super) async fn master(&self) -> Result<Address, String> {
        match &self.target.kind {
            Kind::Sentinel(service) => sentinel::master(self, service).await,
            Kind::Standalone | Kind::Cluster => Ok(self.target.servers[0].clone()),
        }
    }

    fn client(&self, address: &Address, to_redis: bool) -> Result<Client, RedisError> {
        self.open(address, self.settings(to_redis))
    }

    fn settings(&self, to_redis: bool) -> RedisConnectionInfo {
        let mut settings = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
        if to_redis {
            settings = settings.set_db(self.target.database.into());
            if let Some(user) = &self.target.user {
                settings = settings.set_username(user);
            }
            if let Some(password) = &self.target.password {
                settings = settings.set_password(password);
            }
        }
        settings
    }

    fn open(&self, address: &Address, settings: RedisConnectionInfo) -> Result<Client, RedisError> {
        let (host, port) = (address.host.clone(), address.port);
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(UNACKNOWLEDGED_MAX);
        if self.target.tls {
            let address = ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None };
            let info = address.into_connection_info()?.set_redis_settings(settings).set_tcp_settings(tcp);
            Client::build_with_tls(info, self.certificates.clone())
        } else {
            let info = ConnectionAddr::Tcp(host, port).into_connection_info()?;
            Client::open(info.set_redis_settings(settings).set_tcp_settings(tcp))
        }
    }
}

fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_pipeline_buffer_size(COMMANDS_WAITING_MAX)
}

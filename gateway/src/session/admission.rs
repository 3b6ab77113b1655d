//! May this user have one connection more, on all nodes together?

use std::sync::Arc;
use std::time::Duration;

use super::Session;
use super::connection::{Refused, refused};
use super::recovery::Claim;
use crate::client::{ConnectionId, Identity};
use crate::close::Close;
use crate::engine::{Seat, SeatLimits, Whose};
use crate::gateway::{LiveTenant, UserSlot};
use crate::seats::{HeldSeat, Whole};
use crate::tenant::Limits;

/// When a client that finds its user's limit reached is looked at once more: it may have come from another node that
/// is about to say that it has left.
const SECOND_LOOK_AFTER: Duration = Duration::from_millis(200);

impl Session {
    /// Takes a place among the user's connections, here and on all nodes. A client that comes back to its session may
    /// have that of the connection that it comes back from.
    pub(super) async fn admitted_user(
        &self,
        tenant: &Arc<LiveTenant>,
        identity: &Identity,
        id: &ConnectionId,
        auth: Option<&str>,
    ) -> Result<UserSlot, Refused> {
        let max = tenant.settings().limits.connections_per_user;
        let full = || {
            let text = format!("a user may have {max} connections (setting limits.connections_per_user)");
            refused(Close::ConnectionLimit, text)
        };
        let mut earlier = None;
        let slot = match tenant.user_slot(&identity.subject, false) {
            Some(slot) => slot,
            None => {
                earlier = self.earlier(tenant, identity, auth).await;
                let slot = earlier.as_ref().and_then(|_| tenant.user_slot(&identity.subject, true));
                slot.ok_or_else(full)?
            }
        };
        let seat = Seat { subject: identity.subject.clone(), connection: id.clone() };
        let mut seated = self.seat(tenant, &seat, earlier.as_ref()).await;
        if matches!(seated, Err(Whose::User)) && earlier.is_none() {
            earlier = self.earlier(tenant, identity, auth).await;
            if earlier.is_none() {
                tokio::time::sleep(SECOND_LOOK_AFTER).await;
            }
            seated = self.seat(tenant, &seat, earlier.as_ref()).await;
        }
        match seated {
            Ok(seat) => Ok(slot.seated(seat)),
            Err(Whose::User) => Err(full()),
            Err(Whose::Tenant) => {
                let max = tenant.settings().limits.connections;
                Err(refused(
                    Close::ServerFull,
                    format!("the tenant has {max} connections (setting limits.connections)"),
                ))
            }
        }
    }

    async fn seat(
        &self,
        tenant: &Arc<LiveTenant>,
        seat: &Seat,
        instead_of: Option<&ConnectionId>,
    ) -> Result<HeldSeat, Whose> {
        let Limits { connections_per_user: per_user, connections: per_tenant, .. } = tenant.settings().limits;
        let whole = Whole {
            engine: &self.gateway.engine,
            tasks: &self.gateway.tasks,
            tenant: &tenant.id,
            limits: SeatLimits { per_user, per_tenant },
        };
        tenant.seats.take(&whole, seat, instead_of).await
    }

    /// The connection of a session of this user to which the client comes back, if there is one.
    async fn earlier(&self, tenant: &LiveTenant, identity: &Identity, auth: Option<&str>) -> Option<ConnectionId> {
        let session = match self.language.has_offsets() {
            true => Claim::of_auth(auth).map(|claim| claim.session),
            false => self.hello.claim.as_ref().map(|claim| claim.session.clone()),
        };
        let record = self.gateway.engine.session(&tenant.id, &session?).await.ok()??;
        (record.subject == identity.subject).then_some(record.connection)
    }
}

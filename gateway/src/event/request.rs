//! Events that the gateway answers itself: no plugin sees them.

/// The events that the gateway answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the events")]
pub enum Request {
    JoinRoom,
    JoinChannel,
    LeaveRoom,
    LeaveChannel,
    Subscribe,
    Unsubscribe,
    Publish,
    BatchUpdate,
    History,
    Presence,
    Heartbeat,
    RefreshToken,
    Resume,
}

impl Request {
    /// By the event's name; `None`: not the gateway's to answer.
    pub fn of(name: &str) -> Option<Request> {
        Some(match name {
            "join_room" => Request::JoinRoom,
            "join_channel" => Request::JoinChannel,
            "leave_room" => Request::LeaveRoom,
            "leave_channel" => Request::LeaveChannel,
            "subscribe" => Request::Subscribe,
            "unsubscribe" => Request::Unsubscribe,
            "publish" => Request::Publish,
            "batch_update" => Request::BatchUpdate,
            "history" => Request::History,
            "presence" => Request::Presence,
            "heartbeat" => Request::Heartbeat,
            "refresh_token" => Request::RefreshToken,
            "resume" => Request::Resume,
            _ => return None,
        })
    }
}

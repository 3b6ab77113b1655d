//! Who may join which room. No host, no state: claims and a room's name in, an answer out.

use serde_json::{Map, Value};

/// Rooms that a connection joins by itself, at most.
pub const ROOMS_AT_CONNECT_MAX: usize = 64;

/// The longest room name the gateway takes, in bytes.
const ROOM_NAME_BYTES_MAX: usize = 200;

/// What a member may do. Presence and history are for every member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// What happens there is published by handlers only.
    Read,
    /// Members publish themselves.
    ReadAndPublish,
}

/// The claims of a verified token. What is missing or of another type is not claimed.
pub struct Claims(Map<String, Value>);

impl Claims {
    /// Reads the JSON object of the claims; anything else claims nothing.
    pub fn read(json: &str) -> Claims {
        Claims(serde_json::from_str(json).unwrap_or_default())
    }

    /// The rooms a connection in `namespace` joins at once: a guard its society, a resident
    /// its flats, everybody else the teams; at most [`ROOMS_AT_CONNECT_MAX`].
    pub fn rooms_at_connect(&self, namespace: &str) -> Vec<(String, Rights)> {
        let (room_type, ids, rights) = match self.role() {
            Some("guard") => ("society", self.text("society_id").into_iter().collect(), Rights::Read),
            Some("resident") => ("flat", self.list("flats"), Rights::Read),
            _ => ("team", self.list("teams"), Rights::ReadAndPublish),
        };
        let prefix = if namespace == "/" { String::new() } else { format!("{namespace}#") };
        let rooms = ids.iter().filter(|id| !id.is_empty()).map(|id| format!("{prefix}{room_type}:{id}"));
        rooms.filter(|room| is_room_name(room)).take(ROOMS_AT_CONNECT_MAX).map(|room| (room, rights)).collect()
    }

    /// May the bearer join the room, given the first argument of its join?
    ///
    /// # Errors
    /// Why not, for people.
    pub fn may_join(&self, room: &str, first_argument: Option<&Value>) -> Result<Rights, &'static str> {
        let name = if room.starts_with('/') { room.split_once('#').map_or("", |(_, name)| name) } else { room };
        if name == "lobby" {
            return Ok(Rights::Read);
        }
        let Some((room_type, id)) = name.split_once(':').filter(|(_, id)| !id.is_empty()) else {
            return Err("rooms here are named {type}:{id}");
        };
        if self.role() == Some("guard") && room_type != "society" {
            return Err("guards join the room of their society only");
        }
        match room_type {
            "society" => match self.role() {
                Some("guard" | "admin") if self.text("society_id").is_some_and(|own| own == id) => Ok(Rights::Read),
                Some("guard" | "admin") => Err("this is not the society of the token"),
                _ => Err("the room of a society is for its guards and admins"),
            },
            "flat" if self.role() == Some("resident") && self.lists("flats", id) => Ok(Rights::Read),
            "flat" => Err("the room of a flat is for its residents"),
            "project" => self.listed("projects", id, "the token does not list this project"),
            "team" => self.listed("teams", id, "the token does not list this team"),
            "channel" => self.listed("channels", id, "the token does not list this channel"),
            "task" => self.task(id, first_argument),
            _ => Err("rooms of this type are not open to clients"),
        }
    }

    /// A task is open to those whose token lists it, and to the members of the project that
    /// the join names. That the task belongs to the project is the word of the client: a
    /// tenant with tasks that are secret within a project lists them in `tasks` instead.
    fn task(&self, id: &str, first_argument: Option<&Value>) -> Result<Rights, &'static str> {
        let project = first_argument.and_then(|argument| text(argument.get("project_id")?));
        if self.lists("tasks", id) || project.is_some_and(|project| self.lists("projects", &project)) {
            return Ok(Rights::ReadAndPublish);
        }
        Err("the token lists neither this task nor the project that `project_id` names")
    }

    fn listed(&self, claim: &str, id: &str, or: &'static str) -> Result<Rights, &'static str> {
        if self.lists(claim, id) { Ok(Rights::ReadAndPublish) } else { Err(or) }
    }

    fn role(&self) -> Option<&str> {
        self.0.get("role")?.as_str()
    }

    fn text(&self, claim: &str) -> Option<String> {
        text(self.0.get(claim)?)
    }

    fn list(&self, claim: &str) -> Vec<String> {
        self.0.get(claim).and_then(Value::as_array).into_iter().flatten().filter_map(text).collect()
    }

    fn lists(&self, claim: &str, id: &str) -> bool {
        let items = self.0.get(claim).and_then(Value::as_array).into_iter().flatten();
        items.filter_map(text).any(|item| item == id)
    }
}

/// The first of a JSON array of arguments.
pub fn first_argument(args: &str) -> Option<Value> {
    serde_json::from_str::<Vec<Value>>(args).ok()?.into_iter().next()
}

/// Ids are texts or whole numbers: tokens in use have both.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        _ => None,
    }
}

fn is_room_name(room: &str) -> bool {
    room.len() <= ROOM_NAME_BYTES_MAX && !room.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const GUARD: &str = r#"{"role":"guard","society_id":"s1","flats":["f1"],"projects":["p1"]}"#;
    const RESIDENT: &str = r#"{"role":"resident","society_id":"s1","flats":["f1","f2",7]}"#;
    const ADMIN: &str = r#"{"role":"admin","society_id":"s1"}"#;
    const MEMBER: &str = r#"{"projects":["p1"],"teams":["t1",2],"channels":["c1"],"tasks":["k1"]}"#;

    fn join(claims: &str, room: &str) -> Option<Rights> {
        Claims::read(claims).may_join(room, None).ok()
    }

    #[test]
    fn guards_join_their_society_and_nothing_else() {
        assert_eq!(join(GUARD, "society:s1"), Some(Rights::Read));
        for room in ["society:s2", "flat:f1", "project:p1", "society:", "society"] {
            assert_eq!(join(GUARD, room), None, "{room}");
        }
    }

    #[test]
    fn residents_join_their_flats_but_not_the_society() {
        for room in ["flat:f1", "flat:f2", "flat:7"] {
            assert_eq!(join(RESIDENT, room), Some(Rights::Read), "{room}");
        }
        for room in ["flat:f3", "society:s1", "flat:", "flat:f1:x"] {
            assert_eq!(join(RESIDENT, room), None, "{room}");
        }
    }

    #[test]
    fn admins_join_their_own_society() {
        assert_eq!(join(ADMIN, "society:s1"), Some(Rights::Read));
        assert_eq!(join(ADMIN, "society:s2"), None);
        assert_eq!(join(ADMIN, "flat:f1"), None);
    }

    #[test]
    fn members_of_a_team_hub_join_what_their_token_lists_and_publish_there() {
        for room in ["project:p1", "team:t1", "team:2", "channel:c1", "task:k1"] {
            assert_eq!(join(MEMBER, room), Some(Rights::ReadAndPublish), "{room}");
        }
        for room in ["project:p2", "team:t2", "channel:p1", "task:k2"] {
            assert_eq!(join(MEMBER, room), None, "{room}");
        }
    }

    #[test]
    fn a_task_is_open_to_members_of_the_project_that_the_join_names() {
        let join = |argument: Value| Claims::read(MEMBER).may_join("task:k2", Some(&argument)).is_ok();
        assert!(join(json!({"project_id": "p1"})));
        assert!(!join(json!({"project_id": "p2"})));
        assert!(!join(json!({"project_id": ["p1"]})));
        assert!(!join(json!("p1")));
    }

    #[test]
    fn rooms_of_a_namespace_follow_the_same_rules() {
        assert_eq!(join(RESIDENT, "/events#flat:f1"), Some(Rights::Read));
        assert_eq!(join(RESIDENT, "/events#flat:f3"), None);
        assert_eq!(join(RESIDENT, "/flat:f1"), None);
        assert_eq!(join(RESIDENT, "/flat:f1#x"), None);
    }

    #[test]
    fn everybody_reads_the_lobby_of_any_namespace() {
        for claims in [GUARD, RESIDENT, MEMBER, "{}"] {
            assert_eq!(join(claims, "/events#lobby"), Some(Rights::Read));
        }
        assert_eq!(join("{}", "/events#lobby2"), None);
    }

    #[test]
    fn claims_that_are_missing_or_malformed_open_nothing() {
        for claims in ["", "[]", "{}", "null", r#"{"role":7,"flats":"f1","projects":{"p1":1}}"#] {
            for room in ["society:s1", "flat:f1", "project:p1", "task:k1", "user:bob", "everyone", ""] {
                assert_eq!(join(claims, room), None, "{claims} {room}");
            }
            assert!(Claims::read(claims).rooms_at_connect("/").is_empty());
        }
    }

    #[test]
    fn connecting_joins_the_rooms_of_the_role() {
        let rooms = |claims: &str, namespace: &str| -> Vec<String> {
            Claims::read(claims).rooms_at_connect(namespace).into_iter().map(|(room, _)| room).collect()
        };
        assert_eq!(rooms(GUARD, "/"), ["society:s1"]);
        assert_eq!(rooms(RESIDENT, "/"), ["flat:f1", "flat:f2", "flat:7"]);
        assert_eq!(rooms(MEMBER, "/"), ["team:t1", "team:2"]);
        assert_eq!(rooms(GUARD, "/events"), ["/events#society:s1"]);
    }

    #[test]
    fn connecting_joins_a_bounded_number_of_well_formed_rooms() {
        let flats: Vec<String> = (0..100).map(|n| format!("f{n}")).collect();
        let many = json!({"role": "resident", "flats": flats}).to_string();
        assert_eq!(Claims::read(&many).rooms_at_connect("/").len(), ROOMS_AT_CONNECT_MAX);
        let odd = json!({"role": "resident", "flats": ["", "a\nb", "x".repeat(200), "ok"]}).to_string();
        assert_eq!(Claims::read(&odd).rooms_at_connect("/"), [("flat:ok".to_owned(), Rights::Read)]);
    }
}

//! A router's answers by namespace and event name, for routers that say that nothing else counts.

use std::sync::Arc;

use hashbrown::{Equivalent, HashMap};
use parking_lot::RwLock;

use crate::event::Refusal;

/// Answers that are kept of one router. Clients choose the names: when there are too many, all are forgotten.
const ANSWERS_MAX: usize = 512;

/// What a router answered: handlers by name, or a refusal.
pub(super) type RouteAnswer = Result<Vec<String>, Refusal>;

/// The answers of one component with its settings; they go with it.
#[derive(Debug, Default)]
pub(super) struct Routes {
    answers: RwLock<HashMap<(Arc<str>, Arc<str>), RouteAnswer>>,
}

#[derive(PartialEq, Eq, Hash)]
struct Key<'a>(&'a str, &'a str);

impl Equivalent<(Arc<str>, Arc<str>)> for Key<'_> {
    fn equivalent(&self, key: &(Arc<str>, Arc<str>)) -> bool {
        *self.0 == *key.0 && *self.1 == *key.1
    }
}

impl Routes {
    /// What the router has answered to this.
    pub(super) fn answer(&self, namespace: &str, event: &str) -> Option<RouteAnswer> {
        self.answers.read().get(&Key(namespace, event)).cloned()
    }

    /// Keeps an answer.
    pub(super) fn keep(&self, namespace: &Arc<str>, event: &Arc<str>, answer: RouteAnswer) {
        let mut answers = self.answers.write();
        if answers.len() >= ANSWERS_MAX {
            answers.clear();
        }
        answers.insert((namespace.clone(), event.clone()), answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_by_namespace_and_name_and_never_too_many() {
        let routes = Routes::default();
        let text = |name: &str| Arc::<str>::from(name);
        routes.keep(&text("/"), &text("chat"), Ok(vec!["one".into()]));
        routes.keep(&text("/n"), &text("chat"), Err(Refusal::new("off", "")));
        assert_eq!(routes.answer("/", "chat"), Some(Ok(vec!["one".to_owned()])));
        assert_eq!(routes.answer("/n", "chat").unwrap().unwrap_err().code, "off");
        assert_eq!((routes.answer("/", "other"), routes.answer("/m", "chat")), (None, None));
        for n in 0..10 * ANSWERS_MAX {
            routes.keep(&text("/"), &text(&n.to_string()), Ok(Vec::new()));
            assert!(routes.answers.read().len() <= ANSWERS_MAX);
        }
    }
}

//! What this node tells another that looks at its lines: for some seconds a time.

use std::sync::Arc;
use std::time::Duration;

use super::listening::say;
use super::{Line, Wanted, Word};
use crate::gateway::Gateway;

/// The longest batch, in bytes of text.
const BATCH_BYTES_MAX: usize = 48 << 10;

/// How much is said of one line beside its message, in bytes, about.
const LINE_OVERHEAD_BYTES: usize = 256;

/// How often batches are sent at most: what comes faster is sent together.
const BATCH_INTERVAL: Duration = Duration::from_millis(200);

/// Lines of one batch; beyond that, in one interval, the rest waits for the next.
const BATCH_LINES_MAX: usize = 200;

/// Answers a question, or goes on doing so.
pub(super) fn answer(gateway: &Arc<Gateway>, id: String, wanted: Wanted) {
    if gateway.tail.answering.begins(&id) {
        let task = answers(gateway.clone(), id, wanted);
        let stopping = gateway.tasks.stopping().clone();
        gateway.tasks.spawn(async move { stopping.run_until_cancelled(task).await });
    }
}

async fn answers(gateway: Arc<Gateway>, id: String, wanted: Wanted) {
    let server: Arc<str> = gateway.server_id.as_str().into();
    let journal = gateway.host.journal(&wanted.tenant);
    let mut tail = journal.subscribe();
    let latest: Vec<_> = journal.latest(usize::MAX).into_iter().filter(|entry| wanted.takes(entry)).collect();
    let latest = &latest[latest.len().saturating_sub(wanted.limit)..];
    let mut lines: Vec<Line> = latest.iter().map(|entry| Line::of(entry, &server)).collect();
    let mut lost = 0;
    let mut begun = true;
    loop {
        let batches = batches(std::mem::take(&mut lines));
        let count = batches.len();
        for (index, lines) in batches.into_iter().enumerate() {
            let said = lines.len() as u64;
            let is_last = index + 1 == count;
            let word = Word::Lines { id: id.clone(), server: server.clone(), lines, lost, begun: begun && is_last };
            lost = match say(&gateway, &word).await {
                Ok(()) => 0,
                Err(_) => lost + said,
            };
        }
        begun = false;
        if !wanted.follow {
            gateway.tail.answering.forget(&id);
            return;
        }
        // What comes within this time goes together.
        tokio::time::sleep(BATCH_INTERVAL).await;
        loop {
            let Some(until) = gateway.tail.answering.until(&id) else { return };
            let Ok(news) = tokio::time::timeout_at(until, tail.next(BATCH_LINES_MAX)).await else { continue };
            lost += news.lost;
            lines =
                news.entries.iter().filter(|entry| wanted.takes(entry)).map(|entry| Line::of(entry, &server)).collect();
            if lost > 0 || !lines.is_empty() {
                break;
            }
        }
    }
}

/// Lines in batches that are not too long; at least one batch, which may be empty.
fn batches(lines: Vec<Line>) -> Vec<Vec<Line>> {
    let mut batches = vec![Vec::new()];
    let mut bytes = 0;
    for line in lines {
        let weight = line.message.len() + LINE_OVERHEAD_BYTES;
        if bytes + weight > BATCH_BYTES_MAX {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += weight;
        if let Some(last) = batches.last_mut() {
            last.push(line);
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_lines_go_in_batches_that_are_not_too_long_and_keep_their_order() {
        let line = |seq| Line { seq, message: "x".repeat(1_024), ..super::super::about_loss("s", String::new()) };
        let sent = batches((0..100).map(line).collect());
        assert!(sent.len() > 2);
        for batch in &sent {
            assert!(serde_json::to_string(batch).unwrap().len() < 64 << 10);
        }
        let order: Vec<u64> = sent.concat().iter().map(|line| line.seq).collect();
        assert!(order.is_sorted() && order.len() == 100);
        assert_eq!(batches(Vec::new()), vec![Vec::new()]);
    }
}

//! Many questions, a few of them at a time, none of them for ever.

use std::time::Duration;
use tokio::task::JoinSet;

/// How long one may take.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How many are asked at once.
const AT_ONCE: usize = 64;

/// Answers in the order of questions; `None` where there was none in time.
pub async fn all<T: Send + 'static>(
    questions: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
    patience: Duration,
) -> Vec<Option<T>> {
    let (mut asked, mut answers) = (JoinSet::new(), Vec::new());
    let take = |answers: &mut Vec<Option<T>>, joined: Result<(usize, Option<T>), tokio::task::JoinError>| {
        if let Ok((at, answer)) = joined {
            answers[at] = answer;
        }
    };
    for (at, question) in questions.into_iter().enumerate() {
        if asked.len() >= AT_ONCE
            && let Some(joined) = asked.join_next().await
        {
            take(&mut answers, joined);
        }
        answers.push(None);
        asked.spawn(async move { (at, tokio::time::timeout(patience, question).await.ok()) });
    }
    while let Some(joined) = asked.join_next().await {
        take(&mut answers, joined);
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    #[test]
    fn silent_ones_hold_up_nobody_for_long_and_only_so_many_are_asked_at_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let questions = (0..4 * AT_ONCE).map(|number| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                if number % 4 == 0 {
                    std::future::pending::<()>().await;
                }
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::Relaxed);
                number
            }
        });
        let since = Instant::now();
        let answers = runtime.block_on(all(questions, Duration::from_millis(300)));
        // One after the other they would take 19 s.
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
        let expected: Vec<_> = (0..4 * AT_ONCE).map(|number| (number % 4 != 0).then_some(number)).collect();
        assert_eq!(answers, expected);
        // Those that are given up have not counted down.
        assert!(most.load(Ordering::Relaxed) <= 2 * AT_ONCE, "{most:?}");
    }
}

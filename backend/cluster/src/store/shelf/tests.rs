use futures_util::FutureExt;
use k8s_openapi::api::core::v1::Service;

use tokio::sync::Semaphore;

use super::super::load::Path;
use super::super::watch::ABSENT;
use super::*;
use crate::fake::FakeApi;
use crate::fetch::LimitedApi;

fn shelf(api: &FakeApi) -> Shelf<Service> {
    Shelf::new(Arc::new(StoreEnv {
        server: LimitedApi::new(api.client()),
        watches: Arc::new(Semaphore::new(0)),
        idle: Duration::from_secs(600),
        path: Path::default(),
        told: Default::default(),
    }))
}

/// What was current when it was asked for is the answer, though it gets old before the asker is served: nobody
/// loads it again.
#[tokio::test(start_paused = true)]
async fn an_answer_that_gets_old_meanwhile() {
    let api = FakeApi::default();
    api.allow_only(&["list services default"]);
    let shelf = shelf(&api);
    let select = Select::named("default", "web");
    let read = shelf.get(&select, &mut Validity::default()).await.unwrap();
    tokio::time::advance(ABSENT - Duration::from_nanos(1)).await;
    let asked = shelf.ask(&select).unwrap();
    tokio::time::advance(Duration::from_nanos(1)).await;
    let known = asked.known().now_or_never().expect("it is known").unwrap();
    assert!(Arc::ptr_eq(&known.found.unwrap(), &read));
}

/// A client that keeps asking for new names while the API server is slow: neither entries nor calls grow without limit.
#[tokio::test(start_paused = true)]
async fn more_questions_than_the_server_answers() {
    let api = FakeApi::default();
    let shelf = shelf(&api);
    api.answer_after(Duration::from_millis(100));
    let name = |i: usize| Select::named("default", &format!("s{i}"));
    for i in 0..ENTRIES + 2 {
        shelf.warm(&name(i));
    }
    assert_eq!(shelf.len(), ENTRIES);
    let refused = shelf.get(&name(ENTRIES), &mut Validity::default()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.refusal(), Refusal::Overloaded, "{refused}");
    // Entries that are awaited finish first, and then there is room.
    for i in [0, ENTRIES - 1, ENTRIES] {
        shelf.get(&name(i), &mut Validity::default()).await.unwrap();
    }
    assert_eq!(api.most_calls(), 256);
}

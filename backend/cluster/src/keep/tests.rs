use futures_util::FutureExt;
use k8s_openapi::api::core::v1::Service;

use super::*;
use crate::fake::Api;

/// What was current when it was asked for is the answer, though it gets old before the asker is served: nobody
/// loads it again.
#[tokio::test(start_paused = true)]
async fn an_answer_that_gets_old_meanwhile() {
    let api = Api::default();
    api.allow_only(&["list services default"]);
    let shelf = Shelf::<Service>::new(Arc::new(Env {
        client: api.client(),
        changes: watch::Sender::new(0),
        watches: Arc::new(Semaphore::new(0)),
        idle: Duration::from_secs(600),
    }));
    let select = Select::named("default", "web");
    let read = shelf.get(&select, &mut Trust::default()).await.unwrap();
    tokio::time::advance(ABSENT - Duration::from_nanos(1)).await;
    let asked = shelf.ask(&select);
    tokio::time::advance(Duration::from_nanos(1)).await;
    let known = asked.known().now_or_never().expect("it is known").unwrap();
    assert!(Arc::ptr_eq(&known.found.unwrap(), &read));
}

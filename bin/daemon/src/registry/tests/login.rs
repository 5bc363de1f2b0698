//! New credentials for an open connection.

use super::*;

/// Connecting again runs a plugin that needs a person.
#[tokio::test(start_paused = true)]
async fn connecting_again_is_the_login() {
    let rig = Rig::new().await;
    let mut asked = request(ID, &[FREE]);
    let server = "https://127.0.0.1:1/";
    asked.kubeconfig = kubeconfig(server);
    asked.kubeconfig["users"][0]["user"] = serde_json::json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "interactiveMode": "Never",
    }});
    rig.connect(asked.clone()).await.unwrap();
    rig.connect(asked.clone()).await.unwrap();
    assert!(rig.engine.world().renewed.is_empty(), "all is well");
    let again = || rig.registry.status().list[0].selection.clone();
    assert_eq!(again(), None);
    rig.engine.world().api = Some(Refusal::Unauthenticated);
    sleep(Duration::from_secs(11)).await;
    assert_eq!(again(), Some(asked.kubeconfig_selection.clone()));
    rig.connect(asked.clone()).await.unwrap_err();
    assert_eq!(rig.engine.world().renewed, [server]);
    rig.engine.world().api = None;
    let opened = rig.connect(asked).await.unwrap();
    assert!(opened.listeners[0].already);
    assert_eq!(rig.engine.world().renewed, [server, server]);
    assert_eq!((rig.state().0, again()), (ConnectionState::Connected, None));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_can_be_read_once_is_kept_until_it_is_passed_again() {
    let rig = Rig::new().await;
    let mut asked = request(ID, &[FREE]);
    asked.kubeconfig = kubeconfig("https://127.0.0.1:1/");
    asked.kubeconfig_selection.files = vec!["/dev/fd/63".into()];
    asked.kubeconfig_selection.read_once = true;
    rig.connect(asked.clone()).await.unwrap();
    sleep(Duration::from_secs(11)).await;
    assert_eq!(rig.state(), (ConnectionState::Connected, String::new()));
    rig.connect(asked.clone()).await.unwrap();
    assert!(rig.engine.world().renewed.is_empty());
    asked.kubeconfig["users"][0]["user"]["token"] = "another token".into();
    rig.connect(asked).await.unwrap();
    assert_eq!(rig.engine.world().renewed.len(), 1);
    let transient = std::fs::read_to_string(rig.dir().kubeconfig(ID)).unwrap();
    assert!(transient.contains("another token"), "{transient}");
}

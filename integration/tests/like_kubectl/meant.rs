//! Where we differ from kubectl, and mean to.

/// The case, and why it is right.
#[rustfmt::skip]
pub(crate) const MEANT: &[(&str, &str)] = &[
    ("shown/for-anything", "kubectl takes it: webpki wants the usage of a server by name, and the verifier is to stay webpki's"),
    ("shown/is-a-ca", "kubectl takes it: webpki takes an authority for no server (RFC 5280, 4.2.1.9), and the verifier is to stay webpki's"),
    ("authority/ca-signs-nothing", "kubectl does not take it: webpki reads no key usage, and the kubeconfig names it as an authority"),
    ("cluster/no scheme, with a ca", "kubectl speaks http to it, without credentials, which no API server answers: TLS, as the authority says"),
    ("cluster/no scheme, insecure", "as with an authority"),
    ("cluster/spaces around", "kubectl refuses a space that was pasted along"),
    ("cluster/proxy without a scheme", "kubectl refuses it in proxy-url, and takes it for http in HTTPS_PROXY: http in both"),
    ("script/always", "kubectl does not run it without a terminal: the daemon has none, and most such plugins keep a session"),
    ("files/unused user is broken", "kubectl refuses the whole file: what is not selected does not matter"),
    ("files/namespace of odd letters", "kubectl does not use the namespace for this question: it would be part of our URLs"),
    ("files/first document is empty", "kubectl reads nothing else then: an empty document is none"),
    ("flags/token over basic", "kubectl finds two credentials: the flag names the one that counts"),
    ("flags/token over a token file", "kubectl sends the file's token: the flag names the one that counts"),
    ("flags/server without a scheme", "as in the kubeconfig"),
];

//! Streams over a pipe: bytes both ways, and every way to end.

mod support;

use std::future::poll_fn;
use std::io::{ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Wake};

use kubevpn_spdy::{Config, Headers, ResetStatus, SpdyStream, StreamError, Unread};
use support::{filler, headers, pair, until};
use tokio::io::{AsyncReadExt, AsyncWrite as _, AsyncWriteExt};

fn cause(error: &std::io::Error) -> &StreamError {
    error.get_ref().unwrap().downcast_ref().unwrap()
}

#[tokio::test]
async fn headers_arrive_on_both_sides() {
    let mut pair = pair(Config::default());
    let mut near = pair.client.open(&headers(), true).unwrap();
    let request = pair.incoming.next().await.unwrap();
    assert_eq!((request.id(), request.fin()), (near.id(), true));
    assert_eq!(request.headers(), &headers());
    let answer = Headers::try_from([("welcome", "yes")]).unwrap();
    let far = request.accept(&answer, false);
    for _ in 0..2 {
        assert_eq!(near.replied().await.unwrap(), answer);
    }
    assert_eq!(far.id(), near.id());
}

#[tokio::test]
async fn each_direction_ends_on_its_own() {
    for near_first in [true, false] {
        let mut pair = pair(Config::default());
        let (near, far) = pair.stream().await;
        let (mut first, mut second) = if near_first { (near, far) } else { (far, near) };
        first.write_all(b"request").await.unwrap();
        first.shutdown().await.unwrap();
        let mut text = String::new();
        second.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "request");
        let error = first.write(b"more").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);

        pair.settle().await;
        second.write_all(b"the answer").await.unwrap();
        second.shutdown().await.unwrap();
        let mut text = String::new();
        first.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "the answer");
        assert_eq!((first.sent(), first.received()), (7, 10));
        drop((first, second));
        pair.settle().await;
        assert_eq!(pair.client.stats().streams, 0);
        assert_eq!(pair.server.stats().streams, 0);
    }
}

#[tokio::test]
async fn a_reset_is_an_error_with_its_status_on_the_other_side() {
    for near_resets in [true, false] {
        let mut pair = pair(Config::default());
        let (near, far) = pair.stream().await;
        let (resetting, mut other) = if near_resets {
            (near, far)
        } else {
            (far, near)
        };
        resetting.reset(ResetStatus::INTERNAL_ERROR);
        let error = other.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let expected = ResetStatus::INTERNAL_ERROR;
        assert!(matches!(cause(&error), StreamError::Reset(status) if *status == expected));
        let error = other.write(b"x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(other.shutdown().await.is_err());
        // Other streams are not affected.
        pair.stream().await;
        assert!(pair.client.is_open() && pair.server.is_open());
    }
}

#[tokio::test]
async fn a_reset_wakes_who_reads_and_who_writes() {
    let mut pair = pair(Config::default());
    let (near, far) = pair.stream().await;
    let (mut reader, mut writer) = tokio::io::split(near);
    let reading = tokio::spawn(async move { reader.read(&mut [0; 10]).await.unwrap_err() });
    let writing = tokio::spawn(async move {
        loop {
            if let Err(error) = writer.write_all(&[0; 100_000]).await {
                return error;
            }
        }
    });
    // The writer blocks once the far side has reached its limit.
    until("stalled", || !pair.server.stats().stalled.is_empty()).await;
    far.reset(ResetStatus::CANCEL);
    for task in [reading, writing] {
        assert_eq!(task.await.unwrap().kind(), ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_dropped_stream_is_cancelled() {
    let mut pair = pair(Config::default());
    let (near, mut far) = pair.stream().await;
    drop(near);
    let error = far.read(&mut [0; 10]).await.unwrap_err();
    assert!(matches!(cause(&error), StreamError::Reset(status) if *status == ResetStatus::CANCEL));
}

#[tokio::test]
async fn a_stream_ended_both_ways_may_be_dropped_before_all_is_sent() {
    let mut pair = pair(Config::default());
    let (mut near, mut far) = pair.stream().await;
    far.shutdown().await.unwrap();
    assert_eq!(near.read(&mut [0; 10]).await.unwrap(), 0);
    // More than the pipe holds, and not read yet.
    let payload = filler(0, 200_000);
    near.write_all(&payload).await.unwrap();
    near.shutdown().await.unwrap();
    drop(near);
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.unwrap();
    assert!(read == payload);
}

#[tokio::test]
async fn a_request_dropped_or_refused_is_reset() {
    let mut pair = pair(Config::default());
    for status in [None, Some(ResetStatus::INVALID_CREDENTIALS)] {
        let mut near = pair.client.open(&headers(), false).unwrap();
        let request = pair.incoming.next().await.unwrap();
        match status {
            Some(status) => request.refuse(status),
            None => drop(request),
        }
        let expected = status.unwrap_or(ResetStatus::REFUSED_STREAM);
        let error = near.replied().await.unwrap_err();
        assert!(matches!(error, StreamError::Reset(status) if status == expected));
    }
    // A request that was not taken yet, then one that is dropped.
    let mut waiting = pair.client.open(&headers(), false).unwrap();
    pair.client.ping().await.unwrap();
    drop(pair.incoming);
    let mut late = pair.client.open(&headers(), false).unwrap();
    for stream in [&mut waiting, &mut late] {
        let error = stream.replied().await.unwrap_err();
        let refused = ResetStatus::REFUSED_STREAM;
        assert!(matches!(error, StreamError::Reset(status) if status == refused));
    }
}

#[tokio::test]
async fn a_stream_reset_before_it_is_accepted_says_so_when_used() {
    let mut pair = pair(Config::default());
    let near = pair.client.open(&headers(), false).unwrap();
    near.reset(ResetStatus::CANCEL);
    pair.client.ping().await.unwrap();
    let mut far = pair
        .incoming
        .next()
        .await
        .unwrap()
        .accept(&headers(), false);
    let error = far.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn data_may_follow_at_once_without_a_reply() {
    let mut pair = pair(Config::default());
    let mut near = pair.client.open(&headers(), false).unwrap();
    assert_eq!(near.try_write(b"early").unwrap(), 5);
    near.finish().unwrap();
    let mut far = pair
        .incoming
        .next()
        .await
        .unwrap()
        .accept(&Headers::new(), false);
    let mut text = String::new();
    far.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "early");
}

#[tokio::test]
async fn chunks_come_as_they_were_sent() {
    let mut pair = pair(Config::default());
    let (mut near, mut far) = pair.stream().await;
    let readable = |stream: &mut SpdyStream| {
        let mut task = tokio_test_poll(stream);
        std::mem::take(&mut task)
    };
    assert!(!readable(&mut far));
    near.write_all(b"abcdef").await.unwrap();
    poll_fn(|cx| far.poll_readable(cx)).await;
    let is_end = async |stream: &mut SpdyStream| poll_fn(|cx| stream.poll_end(cx)).await;
    assert!(!is_end(&mut far).await.unwrap());
    assert_eq!(far.read(&mut [0; 2]).await.unwrap(), 2);
    assert!(readable(&mut far), "the rest");
    assert_eq!(far.chunk().await.unwrap(), "cdef");
    assert!(!readable(&mut far));
    near.shutdown().await.unwrap();
    assert!(is_end(&mut far).await.unwrap());
    assert_eq!(far.chunk().await.unwrap(), "");
    assert_eq!(far.chunk().await.unwrap(), "", "still the end");
}

/// Whether a read would not wait, asked without waiting.
fn tokio_test_poll(stream: &mut SpdyStream) -> bool {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    stream.poll_readable(&mut cx).is_ready()
}

#[tokio::test]
async fn several_chunks_fill_one_read() {
    let mut pair = pair(Config::default());
    let (mut near, mut far) = pair.stream().await;
    for part in ["one ", "two ", "three"] {
        near.write_all(part.as_bytes()).await.unwrap();
        pair.settle().await;
    }
    let mut buffer = [0; 11];
    assert_eq!(far.read(&mut buffer).await.unwrap(), 11);
    assert_eq!(&buffer, b"one two thr");
    assert_eq!(far.read(&mut buffer).await.unwrap(), 2);
}

#[tokio::test]
async fn the_rest_of_a_chunk_stays_counted() {
    const CHUNK: usize = 64 * 1024;
    let unread = Unread::limited(64 << 20);
    let mut pair = pair(Config {
        unread: unread.clone(),
        ..Config::default()
    });
    let mut streams = Vec::new();
    for n in 1..=16 {
        let (mut near, mut far) = pair.stream().await;
        near.write_all(&filler(0, CHUNK)).await.unwrap();
        pair.settle().await;
        assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 1);
        assert_eq!(pair.server.buffered(), n * (CHUNK - 1));
        assert!(unread.bytes() >= n * CHUNK, "what the memory holds");
        streams.push((near, far));
    }
    for (_, far) in &mut streams {
        let mut rest = vec![0; CHUNK - 1];
        far.read_exact(&mut rest).await.unwrap();
        assert_eq!(rest, filler(1, CHUNK - 1));
    }
    assert_eq!((pair.server.buffered(), unread.bytes()), (0, 0));
}

#[tokio::test]
async fn parts_are_written_together() {
    let mut pair = pair(Config::default());
    let (mut near, mut far) = pair.stream().await;
    let parts = [
        IoSlice::new(b"one "),
        IoSlice::new(b""),
        IoSlice::new(b"two"),
    ];
    assert_eq!(near.write_vectored(&parts).await.unwrap(), 7);
    assert_eq!(near.write(b"").await.unwrap(), 0);
    assert_eq!(far.chunk().await.unwrap(), "one two");
}

#[tokio::test]
async fn a_thousand_streams_at_once() {
    let mut pair = pair(Config::default());
    let echo = async {
        for _ in 0..1000 {
            let request = pair.incoming.next().await.unwrap();
            let stream = request.accept(&Headers::new(), false);
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            });
        }
    };
    let ask = async {
        let tasks: Vec<_> = (0..1000)
            .map(|i| {
                let mut stream = pair.client.open(&headers(), false).unwrap();
                tokio::spawn(async move {
                    let question = filler(i, 5000);
                    stream.write_all(&question).await.unwrap();
                    stream.shutdown().await.unwrap();
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer).await.unwrap();
                    assert!(answer == question);
                })
            })
            .collect();
        assert_eq!(pair.client.stats().streams, 1000);
        for task in tasks {
            task.await.unwrap();
        }
    };
    tokio::join!(echo, ask);
    pair.settle().await;
    assert_eq!(pair.client.stats().streams, 0);
    assert_eq!(pair.client.stats().opened, 1000);
}

/// Many streams at once, on several threads: the received data is the sent data.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn streams_do_not_mix() {
    let config = Config {
        stream_buffer: 32 * 1024,
        ..Config::default()
    };
    let mut pair = pair(config);
    let mut tasks = Vec::new();
    for i in 0..24_u64 {
        let (near, far) = pair.stream().await;
        for (stream, offset) in [(near, i), (far, i + 100)] {
            let len = 300_000 + usize::try_from(i).unwrap() * 7919;
            let (mut read, mut write) = tokio::io::split(stream);
            tasks.push(tokio::spawn(async move {
                let payload = filler(offset, len);
                for part in payload.chunks(1 + usize::try_from(i).unwrap() * 5003) {
                    write.write_all(part).await.unwrap();
                }
                write.shutdown().await.unwrap();
            }));
            let other = if offset == i { i + 100 } else { i };
            tasks.push(tokio::spawn(async move {
                let mut all = Vec::new();
                read.read_to_end(&mut all).await.unwrap();
                assert!(all == filler(other, len));
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn who_waits_to_write_is_told_when_the_stream_goes() {
    #[derive(Default)]
    struct Told(AtomicBool);
    impl Wake for Told {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }
    let mut pair = pair(Config::default());
    let (mut near, _far) = pair.stream().await;
    let told = Arc::new(Told::default());
    let waker = told.clone().into();
    let mut cx = Context::from_waker(&waker);
    while Pin::new(&mut near)
        .poll_write(&mut cx, &[0; 64 * 1024])
        .is_ready()
    {}
    drop(near);
    assert!(told.0.load(Relaxed));
}

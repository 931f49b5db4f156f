//! From a stream to its answer.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use super::answer::{Answer, Gone, malformed, read_request};
use super::budget::Turn;
use super::change::{Certainty, Changer, have};
use super::context::ClientContext;
use super::growing::GrowingWrite;
use super::once::once;
use super::{blocks, content, current, directory, events, locks, manifest, metadata, sum, write};
use crate::chunk::{CHUNK_BYTES, ChunkHash};
use crate::proto::{Change, ChangeRequest, KnownChunk, Operation, Reply, Request, WireError, decode_body};
use crate::transport::{Lane, RecvStream, SendStream};

/// Serves one stream. Whatever the client sent, the stream alone suffers. `turn` is for what can be answered without waiting.
pub(super) async fn serve(
    context: Arc<ClientContext>,
    turn: Turn,
    send: SendStream,
    mut receive: RecvStream,
) {
    let mut answer = Answer::new(send);
    answer.set_lane(Lane::Metadata);
    let (body, turn) = read_in_turn(&context, turn, &mut receive).await;
    let request = body.and_then(|body| decode_body::<Request>(&body).map_err(malformed));
    context.counters().requests.add(1);
    let _under_way = context.counters().requests_inflight.enter();
    let at_hand = request.as_ref().ok().and_then(|request| at_hand(&context, request));
    // A client that takes no answer must not keep the turn.
    drop(turn);
    let answered = match (request, at_hand) {
        (_, Some(reply)) => answer.reply(&reply).await,
        (Ok(request), None) => {
            let is_bounded = !waits_for_others(&request);
            let _place = if is_bounded { context.budget.place_for_request().await } else { None };
            dispatch(&context, request, &mut receive, &mut answer).await
        }
        (Err(error), None) => {
            tracing::debug!("a request that breaks the protocol: {error}");
            answer.reply(&Err(error)).await
        }
    };
    if answered.is_ok() {
        answer.finish();
        // Until it has arrived the request is not over: a daemon that ends waits for it.
        answer.unwanted().await;
    }
}

/// Reads the request, with a turn at the processor behind it. While it has not come the turn is somebody else's.
async fn read_in_turn(
    context: &ClientContext,
    turn: Turn,
    receive: &mut RecvStream,
) -> (Result<Vec<u8>, WireError>, Turn) {
    let mut reading = pin!(read_request(receive));
    let at_once = poll_fn(|waker| Poll::Ready(reading.as_mut().poll(waker))).await;
    match at_once {
        Poll::Ready(body) => (body, turn),
        Poll::Pending => {
            drop(turn);
            let body = reading.await;
            (body, context.budget.turn().await)
        }
    }
}

/// The answer to what can be answered without waiting.
fn at_hand(context: &ClientContext, request: &Request) -> Option<Result<Reply, WireError>> {
    if !metadata::may_be_at_hand(request) {
        return None;
    }
    let answer = context.session.with_rights(|session| Ok(metadata::answer_at_hand(session, request)));
    answer.unwrap_or_else(|error| Some(Err(error)))
}

/// Whether a request may wait for another one of the same client, or for as long as it likes: it takes no place from others then.
const fn waits_for_others(request: &Request) -> bool {
    match request {
        Request::Lock(_)
        | Request::TestLock(_)
        | Request::Sync { .. }
        | Request::Close { .. }
        | Request::Events => true,
        Request::Write(write) => matches!(write.at.place(), Some((_, growth, _)) if growth.from > 0),
        Request::Change(ChangeRequest { change: Change::WriteKnown { growth, .. }, .. }) => growth.from > 0,
        _ => false,
    }
}

async fn dispatch(
    context: &Arc<ClientContext>,
    request: Request,
    receive: &mut RecvStream,
    answer: &mut Answer,
) -> Result<(), Gone> {
    match request {
        Request::Read(request, lane) => content::serve(context, request, lane, answer).await,
        Request::ReadCurrent { node, range } => current::serve(context, node, range, answer).await,
        Request::ReadDirectory { node } => directory::serve(context, node, answer).await,
        Request::Events => events::serve(context, answer).await,
        Request::Sum { node } => {
            answer.set_lane(Lane::Background);
            let reply = unless_unwanted(answer, sum::serve(context, node)).await?;
            answer.reply(&reply).await
        }
        Request::Blocks { node, version, range } => {
            let reply = unless_unwanted(answer, blocks::serve(context, node, version, range)).await?;
            answer.reply(&reply).await
        }
        Request::Manifest(request) => {
            let reply = unless_unwanted(answer, manifest::serve(context, request)).await?;
            answer.reply(&reply).await
        }
        Request::Change(ChangeRequest { operation, change }) => {
            let reply = change_once(context, &operation, change).await;
            answer.reply(&reply).await
        }
        Request::Write(request) => {
            let reply = write::serve(context, request, receive).await;
            answer.reply(&reply).await
        }
        Request::HaveChunks { node, offset, chunks } => {
            let look = context.blocking(move |session| have(session, node, offset, &chunks));
            let reply = unless_unwanted(answer, look).await?;
            answer.reply(&reply).await
        }
        Request::Sync { node, data_only, after } => {
            let reply = unless_unwanted(answer, write::sync_after(context, node, data_only, &after)).await?;
            answer.reply(&reply).await
        }
        Request::SyncFileSystem { node } => {
            let reply = unless_unwanted(answer, write::sync_file_system(context, node)).await?;
            answer.reply(&reply).await
        }
        Request::Lock(request) => {
            let reply = locks::serve(context, request).await;
            answer.reply(&reply).await
        }
        Request::TestLock(test) => {
            let read_only = context.read_only;
            let calls = context.blocking(move |session| locks::test(session, read_only, test));
            answer.reply(&calls.await).await
        }
        request => {
            let read_only = context.read_only;
            let calls = context.blocking(move |session| metadata::answer(session, read_only, request));
            answer.reply(&calls.await).await
        }
    }
}

async fn change_once(
    context: &Arc<ClientContext>,
    operation: &Operation,
    change: Change,
) -> Result<Reply, WireError> {
    let worker = Arc::clone(context);
    let is_certain = context.session.run == operation.sent_first;
    let certainty = if is_certain { Certainty::New } else { Certainty::Unknown };
    once(context, operation, move || async move {
        let (owners, boot) = (worker.owners, worker.boot());
        let Change::WriteKnown { node, offset, ref chunks, growth } = change else {
            return worker
                .blocking(move |session| Changer { session, owners, certainty, boot }.apply(change))
                .await;
        };
        let growing = GrowingWrite::begin(&worker, node, growth);
        let end = end_of(offset, chunks);
        let work = async {
            let handle = worker.blocking(move |session| session.file_to_write(node)).await?;
            growing.may_go(&handle, end).await?;
            worker.blocking(move |session| Changer { session, owners, certainty, boot }.apply(change)).await
        };
        let answer = work.await;
        growing.over(answer.as_ref().map(reached));
        answer
    })
    .await
}

/// Where chunks end that begin at `offset`.
const fn end_of(offset: u64, chunks: &[ChunkHash]) -> u64 {
    offset.saturating_add(chunks.len() as u64 * CHUNK_BYTES)
}

/// Size that a file has at least of which known chunks were written.
fn reached(reply: &Reply) -> u64 {
    let Reply::Taken { written, chunks } = reply else { return 0 };
    let first = chunks.iter().take_while(|chunk| **chunk == KnownChunk::Written).count() as u64;
    if first == 0 { 0 } else { written.offset + first * CHUNK_BYTES }
}

/// Works as long as somebody wants to know.
async fn unless_unwanted(
    answer: &Answer,
    work: impl Future<Output = Result<Reply, WireError>>,
) -> Result<Result<Reply, WireError>, Gone> {
    tokio::select! {
        reply = work => Ok(reply),
        () = answer.unwanted() => Err(Gone),
    }
}

//! The first stream of a connection: the client says who it is and what it wants, and is let in or refused in words.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::actor::Actor;
use super::admission::{Admission, Refusal, admit};
use super::answer::{Answer, malformed, read_request};
use super::context::ClientContext;
use super::core::{Core, Listed, LiveClient, seconds_now, who};
use super::file_systems;
use super::keys::Rights;
use super::packing::Packer;
use super::session::Session;
use super::sessions::SESSION_KEEP;
use super::state::StateError;
use super::tickets::TicketBook;
use super::tree::{Tree, check_name};
use crate::proto::{
    ErrorCode, Features, Hello, PROTOCOL_VERSION, Reply, Request, Welcome, WireError, close, decode_body,
    words,
};
use crate::transport::{Connection, PublicKey};

/// How long a client may take from the handshake to its welcome.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// How long a client that was refused may take to read why.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(2);

/// Longest path below an export that can be mounted, in bytes; Linux's `PATH_MAX`.
const SUB_PATH_BYTES_MAX: usize = 4096;

/// A client that was let in; off the list when this is dropped.
pub(super) struct Guest {
    pub(super) context: Arc<ClientContext>,
    pub(super) listed: Listed,
}

/// Hears a client out. `None`: it was refused, told why, and disconnected.
pub(super) async fn greet(core: &Arc<Core>, connection: &Connection) -> Option<Guest> {
    let who = who(connection.peer_key(), connection.remote_address());
    let greeted = timeout(HELLO_DEADLINE, hear(core, connection)).await;
    let refusal = match greeted {
        Ok(Ok(guest)) => return Some(guest),
        Ok(Err(refusal)) => refusal,
        Err(_) => WireError::new(ErrorCode::Refused, "the client did not say hello in time"),
    };
    core.entry.refused(format!("refused {who}: {refusal}"), true);
    connection.close(close::REFUSED, &refusal.to_string());
    None
}

async fn hear(core: &Arc<Core>, connection: &Connection) -> Result<Guest, WireError> {
    let gone = |error| refused(format!("the client left: {error}"));
    let (send, mut receive) = connection.accept_stream().await.map_err(gone)?;
    let mut answer = Answer::new(send);
    let decided = match read_request(&mut receive).await.and_then(|body| decode_hello(&body)) {
        Ok(hello) => let_in(core, connection, hello).await,
        Err(error) => Err(error),
    };
    let (reply, guest) = match decided {
        Ok((welcome, guest)) => (Ok(Reply::Welcome(welcome)), Ok(guest)),
        Err(error) => (Err(error.clone()), Err(error)),
    };
    let told = answer.reply(&reply).await;
    answer.finish();
    if guest.is_err() && told.is_ok() {
        // Closing at once would overtake the words.
        let _ = timeout(GOODBYE_DEADLINE, answer.unwanted()).await;
    }
    guest
}

/// The hello in the first message. One of another version is known as such although its rest may look different.
fn decode_hello(body: &[u8]) -> Result<Hello, WireError> {
    match decode_body(body) {
        Ok(Request::Hello(hello)) => Ok(hello),
        Ok(_) => Err(refused("the first message of a connection must be the hello")),
        Err(error) => match postcard::take_from_bytes::<(u32, u16)>(body) {
            Ok(((0, version), _)) if version != PROTOCOL_VERSION => Err(refused(Refusal::Version(version))),
            _ => Err(malformed(error)),
        },
    }
}

async fn let_in(
    core: &Arc<Core>,
    connection: &Connection,
    hello: Hello,
) -> Result<(Welcome, Guest), WireError> {
    let key = connection.peer_key();
    let (decider, asked) = (Arc::clone(core), hello.clone());
    let rights = in_background(move || decide(&decider, key, &asked)).await?;
    // From here on a file system may hang: that costs the key one of its own threads.
    let budget = core.budgets.of(key, rights.of_key.limits);
    let place = budget.place_on_thread().await;
    let (decider, asked, granted) = (Arc::clone(core), hello.clone(), rights.clone());
    let tree = in_background(move || {
        let _place = place;
        let tree = find_folder(&decider, granted.export, &asked, &granted.actor)?;
        let root = tree.root()?;
        Ok((tree, root))
    });
    let (tree, root) = tree.await?;
    if rights.must_enrol {
        let (decider, asked) = (Arc::clone(core), hello.clone());
        in_background(move || enrol(&decider, key, &asked)).await?;
    }
    let guest = seat(core, connection, &hello, tree, &rights)?;
    // A key that was changed while it came in was not on the list yet when the list was gone through.
    let (decider, export, given) = (Arc::clone(core), hello.export.clone(), rights.clone());
    in_background(move || {
        let keys = decider.state.keys().map_err(|error| not_now(&error))?;
        let known = keys.find(key).filter(|known| known.may_mount(&export));
        let known = known.ok_or_else(|| refused(Refusal::UnknownKey(key)))?;
        if known.rights != given.of_key {
            return Err(WireError::new(ErrorCode::Busy, "the rights of this key are being changed"));
        }
        Ok(())
    })
    .await?;
    let who = who(key, connection.remote_address());
    let folder = String::from_utf8_lossy(&hello.sub_path);
    tracing::info!("{who} is connected to {}/{folder}", hello.export);
    connection.admit();
    let welcome = Welcome {
        trust_reason: file_systems::reason_of(root.node.device),
        features: Features::SUPPORTED.shared_with(hello.features),
        instance: core.instance,
        root,
        read_only: rights.read_only,
        session_keep_ms: SESSION_KEEP.as_millis() as u32,
        session: guest.context.session.run,
        boot: guest.context.boot(),
        acts_as: rights.actor.ids(),
        chooses_owners: rights.of_key.owners && rights.actor.is_root(),
    };
    Ok((welcome, guest))
}

/// Runs what may wait for the disk with the daemon's state.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WireError> + Send + 'static,
) -> Result<T, WireError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(refused("the host failed; see its log")))
}

/// What a client that comes in may do in its export.
#[derive(Debug, Clone)]
struct Granted {
    /// What its key says.
    of_key: Rights,
    /// What people call its key.
    name: String,
    /// Whether it may only read, by its key or by the export.
    read_only: bool,
    /// As whom it acts.
    actor: Actor,
    /// Which export.
    export: usize,
    /// Whether its key is to be written down.
    must_enrol: bool,
}

/// Whether the client may come in, and what it may do. Blocks.
fn decide(core: &Core, key: PublicKey, hello: &Hello) -> Result<Granted, WireError> {
    let names = core.export_names();
    let now = seconds_now();
    let keys = core.state.keys().map_err(|error| not_now(&error))?;
    // A file of tickets that cannot be read keeps out those who need it, and nobody else.
    let (tickets, unread) = match core.state.tickets() {
        Ok(tickets) => (tickets, None),
        Err(error) => (TicketBook::default(), Some(error)),
    };
    let admission = admit(hello, key, &names, &keys, &tickets, now);
    let admission = admission.map_err(|refusal| match &unread {
        Some(error) if hello.ticket.is_some() => not_now(error),
        _ => refused(refusal),
    })?;
    let export = core.export(&hello.export).ok_or_else(|| refused("the export is gone"))?;
    let actor = core.exports[export].actor(&admission.rights).map_err(|error| {
        tracing::error!("the key {key}: {error}");
        refused(error)
    })?;
    let read_only = admission.rights.read_only || core.exports[export].export.read_only;
    let must_enrol = admission.enrol_by.is_some();
    let (of_key, name) = (admission.rights, admission.name);
    Ok(Granted { of_key, name, read_only, actor, export, must_enrol })
}

/// Writes the key down. The ticket is looked at again, as another client may have used it up meanwhile.
fn enrol(core: &Core, key: PublicKey, hello: &Hello) -> Result<(), WireError> {
    let (names, now) = (core.export_names(), seconds_now());
    let enrolled = core.state.update(|keys, tickets| {
        let Admission { enrol_by, rights, .. } = admit(hello, key, &names, keys, tickets, now)?;
        if let Some(id) = enrol_by {
            let name = tickets.redeem(&id, key);
            keys.add(key, &hello.export, &rights, (&name, &format!("let in by ticket {id}")));
            tracing::info!("the ticket {id} let the key {key} in");
        }
        Ok::<(), Refusal>(())
    });
    enrolled.map_err(|error| not_now(&error))?.map_err(refused)
}

fn find_folder(core: &Core, export: usize, hello: &Hello, actor: &Actor) -> Result<Arc<Tree>, WireError> {
    let path = &hello.sub_path;
    if path.len() > SUB_PATH_BYTES_MAX {
        return Err(malformed("the path below the export is too long"));
    }
    if !path.is_empty() {
        path.split(|byte| *byte == b'/').try_for_each(|name| check_name(name).map(drop))?;
    }
    core.tree(export, path, actor).map_err(|error| {
        let path = String::from_utf8_lossy(path);
        refused(format!("cannot serve the folder {path:?} of the export {:?}: {error}", hello.export))
    })
}

/// Joins the client's session, or begins it, and puts the client on the list.
fn seat(
    core: &Arc<Core>,
    connection: &Connection,
    hello: &Hello,
    tree: Arc<Tree>,
    rights: &Granted,
) -> Result<Guest, WireError> {
    let key = connection.peer_key();
    let budget = core.budgets.of(key, rights.of_key.limits);
    let sessions_max = budget.limits.max_sessions as usize;
    let (export, sub_path) = (hello.export.clone(), hello.sub_path.clone());
    let fresh = Arc::new(Session::new(
        (tree, rights.actor.clone()),
        export.clone(),
        sub_path.clone(),
        core.session_run(),
        Arc::clone(&core.locks),
        budget.files.clone(),
        Arc::clone(&core.watches),
    ));
    let attach = || {
        let attached = core.sessions().attach((key, sessions_max), hello.session, Arc::clone(&fresh));
        attached.map_err(|error| WireError::new(ErrorCode::Busy, error.to_string()))
    };
    let mut session = attach()?;
    if !session.actor.is_same_user(&rights.actor) {
        // What is open there was opened by another user.
        drop(core.sessions().end(key, hello.session));
        session = attach()?;
    }
    // From here on the list takes the connection off the session again.
    let listed = core.list(LiveClient {
        key,
        session: hello.session,
        export,
        sub_path,
        rights: rights.of_key.clone(),
        name: rights.name.clone(),
        tree: Arc::clone(&session.tree),
        since: Instant::now(),
        connection: connection.clone(),
    });
    if session.export != hello.export || session.sub_path != hello.sub_path {
        return Err(refused("this session has mounted another folder"));
    }
    let context = ClientContext::new(
        session,
        (rights.read_only, rights.of_key.owners),
        budget,
        Packer::new(Arc::clone(&core.codec), hello.compression, connection.clone()),
        Arc::clone(&core.index),
        core.engine.clone(),
        Arc::clone(&core.counters),
    );
    Ok(Guest { context: Arc::new(context), listed })
}

/// A refusal. It may repeat what the client asked for, and goes into the log, too.
fn refused(why: impl fmt::Display) -> WireError {
    WireError::new(ErrorCode::Refused, words::of_peer(&why.to_string()))
}

/// The client learns no more than that the fault is not its own.
fn not_now(error: &StateError) -> WireError {
    tracing::error!("{error}");
    WireError::new(ErrorCode::Busy, "the host cannot read its own state; its log says more")
}

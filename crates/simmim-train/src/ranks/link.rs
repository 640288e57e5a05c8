//! The thread that talks to the other ranks, so that sums are on their way while the backward goes on.

use super::collectives::{Collectives, Patience};
use super::piece::Piece;
use crate::error::TrainError;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// A rank without work looks this often whether others look for it.
const IDLE: Duration = Duration::from_millis(200);
/// After this long a rank is missing, until a recipe says otherwise.
const LIMIT: Duration = Duration::from_secs(600);

/// What the thread is asked to do.
pub(super) enum Job {
    /// Gather these bytes of all ranks.
    AllGather(Vec<u8>),
    /// Give the bytes of a rank to all.
    Broadcast(usize, Vec<u8>),
    /// Wait for all.
    Barrier,
    /// Sum the addends of all ranks: those of a block on the rank that it belongs to, which keeps the sums or hands them out.
    Sum { piece: Piece, hand_out: bool },
    /// Gather what each rank has of a piece.
    Gather(Piece),
}

/// What became of a job. They end in the order in which they were given.
pub(super) enum Done {
    Bytes(Vec<u8>),
    Piece(Piece),
    Failed(TrainError),
}

/// What both threads see.
#[derive(Debug)]
pub(super) struct Shared {
    /// Milliseconds.
    limit: AtomicU64,
    /// Exit code; negative as long as nothing ends.
    end: AtomicI32,
}

impl Shared {
    pub(super) fn limit(&self) -> Duration {
        Duration::from_millis(self.limit.load(Ordering::Relaxed))
    }

    pub(super) fn ended(&self) -> Option<u8> {
        u8::try_from(self.end.load(Ordering::Relaxed)).ok()
    }
}

/// The training's end of the thread.
pub(super) struct Link {
    pub(super) rank: usize,
    pub(super) world: usize,
    shared: Arc<Shared>,
    /// None once the thread is to end.
    jobs: Option<Sender<Job>>,
    /// Pieces that are done with.
    pub(super) pieces: RefCell<Vec<Piece>>,
    done: Receiver<Done>,
    /// Jobs whose end was not taken yet.
    waiting: Cell<usize>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// Starts the thread, in which `open` connects the ranks.
    pub(super) fn open<C: Collectives>(
        open: impl FnOnce(Patience) -> Result<C, TrainError> + Send + 'static,
    ) -> Result<Self, TrainError> {
        let shared = Arc::new(Shared { limit: AtomicU64::new(LIMIT.as_millis() as u64), end: AtomicI32::new(-1) });
        let ((jobs, to_do), (say, done), (opened, known)) = (channel(), channel(), channel());
        let patience = Patience { shared: Arc::clone(&shared), say: say.clone() };
        let work = move || match open(patience.clone()) {
            Err(error) => drop(opened.send(Err(error))),
            Ok(collectives) => {
                if opened.send(Ok((collectives.rank(), collectives.world()))).is_ok() {
                    serve(&collectives, &to_do, &say, &patience);
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("ranks".into()).spawn(work).map_err(|e| broken(&e.to_string()))?;
        let (rank, world) = known.recv().map_err(|_| broken("it did not start"))??;
        Ok(Self {
            rank,
            world,
            shared,
            jobs: Some(jobs),
            pieces: RefCell::default(),
            done,
            waiting: Cell::new(0),
            thread: Some(thread),
        })
    }

    pub(super) fn set_limit(&self, limit: Duration) {
        self.shared.limit.store(limit.as_millis().min(u128::from(u64::MAX)) as u64, Ordering::Relaxed);
    }

    /// Gives the thread something to do.
    pub(super) fn give(&self, job: Job) -> Result<(), TrainError> {
        let jobs = self.jobs.as_ref().ok_or_else(|| broken("it has ended"))?;
        self.waiting.set(self.waiting.get() + 1);
        jobs.send(job).map_err(|_| broken("it has ended"))
    }

    /// Waits for the oldest job.
    pub(super) fn take(&self) -> Result<Done, TrainError> {
        match self.done.recv().map_err(|_| broken("it has ended"))? {
            Done::Failed(error) => Err(error),
            done => Ok(self.taken(done)),
        }
    }

    fn taken(&self, done: Done) -> Done {
        self.waiting.set(self.waiting.get() - 1);
        done
    }

    /// The oldest job, where that is done.
    pub(super) fn take_done(&self) -> Result<Option<Done>, TrainError> {
        match self.done.try_recv() {
            Err(_) => Ok(None),
            Ok(Done::Failed(error)) => Err(error),
            Ok(done) => Ok(Some(self.taken(done))),
        }
    }

    /// Does a job that gives bytes.
    pub(super) fn bytes(&self, job: Job) -> Result<Vec<u8>, TrainError> {
        self.give(job)?;
        match self.take()? {
            Done::Bytes(bytes) => Ok(bytes),
            Done::Piece(_) | Done::Failed(_) => Err(broken("a sum was not waited for")),
        }
    }

    /// Ends all ranks.
    pub(super) fn end(&self, code: u8) {
        self.shared.end.store(code.into(), Ordering::Relaxed);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if std::thread::panicking() || self.waiting.get() > 0 {
            // This rank and the others may wait for each other, and leaving would wait for them.
            self.end(101);
        }
        self.jobs = None;
        self.thread.take().map(JoinHandle::join);
    }
}

fn broken(why: &str) -> TrainError {
    TrainError::Internal { what: format!("the thread that reaches the other ranks: {why}") }
}

/// Does what is asked until nobody asks any more.
fn serve(collectives: &impl Collectives, jobs: &Receiver<Job>, done: &Sender<Done>, patience: &Patience) {
    let mut work = Vec::new();
    loop {
        match jobs.recv_timeout(IDLE) {
            Ok(job) => {
                let result = perform(collectives, job, &mut work).unwrap_or_else(Done::Failed);
                if done.send(result).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => collectives.idle(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if patience.ended().is_some() {
            break;
        }
    }
    if let Some(code) = patience.ended() {
        collectives.abort(code);
    }
}

fn perform(collectives: &impl Collectives, job: Job, work: &mut Vec<Piece>) -> Result<Done, TrainError> {
    Ok(match job {
        Job::AllGather(mine) => {
            let mut all = vec![0; mine.len() * collectives.world()];
            collectives.all_gather(&mine, &mut all)?;
            Done::Bytes(all)
        }
        Job::Broadcast(root, mut data) => {
            collectives.broadcast(root, &mut data)?;
            Done::Bytes(data)
        }
        Job::Barrier => {
            collectives.barrier()?;
            Done::Bytes(Vec::new())
        }
        Job::Sum { piece, hand_out } => Done::Piece(piece.sum(collectives, hand_out, work)?),
        Job::Gather(piece) => Done::Piece(piece.gather(collectives, work)?),
    })
}

// SPDX-License-Identifier: Apache-2.0
//! The thread that owns MLX. An MLX stream belongs to the thread that made it, so one thread builds,
//! evaluates and frees every array, and all others send it closures.

use super::error::{Error, Result};
use super::memory;
use super::mlx::{Array, Device, Mlx, MlxResult};
use super::model::Model;
use super::weights::Parameters;
use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, ThreadId};

/// MLX walks a graph that it compiles by recursion, as deep as the model.
const STACK_BYTES: usize = 256 << 20;

type Job = Box<dyn FnOnce(&mut State) + Send>;

/// What lives on the owner's thread.
pub struct State {
    pub mlx: Mlx,
    /// Arrays that handles elsewhere refer to.
    pub tensors: HashMap<u64, Array>,
    pub models: HashMap<u64, Model>,
    /// Models whose parameters are not complete.
    pub loading: HashMap<u64, Parameters>,
    next_id: u64,
}

impl State {
    /// A number that no tensor and no model has.
    pub fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Evaluates the arrays and with them every cache that has changed: a cache left behind would
    /// keep the graph of its step alive and make the next update a copy.
    pub fn evaluate<'a>(&'a mut self, arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
        let mut all: Vec<&Array> = arrays.into_iter().collect();
        for model in self.models.values() {
            all.extend(model.dirty_arrays());
        }
        if let [array] = all[..] {
            // It may be of a step that another one follows already.
            return Ok(self.mlx.wait(array)?);
        }
        self.mlx.eval(all)?;
        for model in self.models.values_mut() {
            model.mark_evaluated();
        }
        Ok(())
    }
}

enum Message {
    Run(Job),
    Stop,
}

/// A handle to the thread. The last one that is dropped stops it.
pub struct Owner {
    sender: Sender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
    thread_id: ThreadId,
    calls: AtomicU64,
}

impl Owner {
    /// Starts the thread.
    ///
    /// # Errors
    /// The device does not exist.
    pub fn start(device: Device) -> Result<Arc<Owner>> {
        Owner::start_with(move || Mlx::new(device))
    }

    /// Starts the thread on the MLX that a function makes there.
    ///
    /// # Errors
    /// The function's.
    pub fn start_with(
        make: impl FnOnce() -> MlxResult<Mlx> + Send + 'static,
    ) -> Result<Arc<Owner>> {
        let (sender, receiver) = channel();
        let (ready, started) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("vllm-metal".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || match make() {
                Ok(mlx) => {
                    let _ = ready.send(Ok(()));
                    serve(mlx, receiver);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            })
            .map_err(|error| Error::Internal(format!("cannot start a thread: {error}")))?;
        started
            .recv()
            .map_err(|_| Error::Internal("the MLX thread died".to_owned()))??;
        let thread_id = thread.thread().id();
        Ok(Arc::new(Owner {
            sender,
            thread: Mutex::new(Some(thread)),
            thread_id,
            calls: AtomicU64::new(0),
        }))
    }

    /// Runs a closure on the thread and waits for its result. Do not hold Python's GIL meanwhile.
    ///
    /// # Errors
    /// The closure's, [`Error::Closed`], [`Error::Reentrant`] from the thread itself, or
    /// [`Error::Internal`] where the closure panicked.
    pub fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        if std::thread::current().id() == self.thread_id {
            return Err(Error::Reentrant);
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        let (reply, result) = sync_channel(1);
        let job: Job = Box::new(move |state| {
            let outcome = catch_unwind(AssertUnwindSafe(|| work(state)))
                .unwrap_or_else(|panic| Err(Error::Internal(panic_message(&*panic))));
            // Nobody waits when the caller's thread has died.
            let _ = reply.send(outcome);
        });
        self.sender
            .send(Message::Run(job))
            .map_err(|_| Error::Closed)?;
        result.recv().map_err(|_| Error::Closed)?
    }

    /// How often somebody waited for the thread.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Runs a closure on the thread some time; where the thread has ended, drops it here.
    pub fn post(&self, work: impl FnOnce(&mut State) + Send + 'static) {
        let _ = self.sender.send(Message::Run(Box::new(work)));
    }

    /// Frees everything and ends the thread. Later calls fail with [`Error::Closed`].
    pub fn close(&self) {
        let _ = self.sender.send(Message::Stop);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // The last handle may be dropped by an array's deleter on the thread itself.
        if let Some(thread) =
            thread.filter(|thread| thread.thread().id() != std::thread::current().id())
        {
            let _ = thread.join();
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.close();
    }
}

fn serve(mlx: Mlx, receiver: Receiver<Message>) {
    let mut state = State {
        mlx,
        tensors: HashMap::new(),
        models: HashMap::new(),
        loading: HashMap::new(),
        next_id: 0,
    };
    while let Ok(Message::Run(job)) = receiver.recv() {
        // `call` reports its panics itself; a posted job has nobody to report to.
        let _ = catch_unwind(AssertUnwindSafe(|| job(&mut state)));
        join_freed_blocks();
    }
    // What is still queued is dropped unrun: its callers see a closed runtime.
    drop(receiver);
    let State {
        mlx,
        tensors,
        models,
        loading,
        ..
    } = state;
    let _ = mlx.synchronize();
    drop((tensors, models, loading));
    let _ = memory::clear_cache();
}

/// glibc sets small freed blocks aside and joins them all when somebody next asks for a kilobyte: for
/// those of a step's graph that takes a tenth of a millisecond. Asks while nobody waits, so that the
/// next step need not.
fn join_freed_blocks() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(2048)));
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

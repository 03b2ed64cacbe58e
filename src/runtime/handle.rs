// SPDX-License-Identifier: Apache-2.0
//! What other threads hold of the runtime: itself, and a model that is being loaded.

use super::dlpack::Imported;
use super::error::{Error, Result};
use super::host::HostTensor;
use super::island::IslandRunner;
use super::loaded_model::LoadedModel;
use super::memory::{self, Limits, Usage};
use super::mlx::{Array, Device, Meter, Mlx};
use super::model::Model;
use super::owner::Owner;
use super::replay::Builds;
use super::tensor::{self, Tensor};
use super::weights::{self, Parameters, Source};
use lowering::plan::Plan;
use std::path::PathBuf;
use std::sync::Arc;

/// MLX on a device, with a thread of its own.
pub struct Runtime {
    owner: Arc<Owner>,
}

/// What a runtime did since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Times that somebody waited for the thread.
    pub calls: u64,
    /// Times that the thread waited for MLX.
    pub evaluations: u64,
    /// How the steps of its models came about.
    pub builds: Builds,
}

impl Runtime {
    /// Starts MLX.
    ///
    /// # Errors
    /// The device does not exist, or MLX refuses a limit.
    pub fn new(device: Device, limits: Limits) -> Result<Runtime> {
        let owner = Owner::start(device)?;
        owner.call(move |_| memory::set_limits(limits))?;
        Ok(Runtime { owner })
    }

    /// MLX that passes for one on a Mac's GPU, so that the graphs of its models' steps can be looked
    /// at anywhere; see [`super::mlx::Mlx::recorder`]. Values are wrong.
    pub fn recorder() -> Result<Runtime> {
        let owner = Owner::start_with(Mlx::recorder)?;
        Ok(Runtime { owner })
    }

    /// What MLX would run for lazy tensors and for the caches that change with them: names of the
    /// functions that stand-ins are for since the last call, and the graph in the DOT language, written
    /// to a file at `path`.
    ///
    /// # Errors
    /// The runtime is no recorder, or the file cannot be written.
    pub fn recorded(&self, tensors: &[&Tensor], path: PathBuf) -> Result<(Vec<String>, String)> {
        let ids: Vec<u64> = tensors.iter().map(|tensor| tensor.id()).collect();
        self.owner.call(move |state| {
            let arrays = ids.iter().map(|id| tensor::find(state, *id).cloned());
            let mut arrays: Vec<Array> = arrays.collect::<Result<_>>()?;
            let caches = state.models.values().flat_map(Model::dirty_arrays);
            arrays.extend(caches.cloned());
            Ok(state.mlx.recorded(arrays, &path)?)
        })
    }

    /// MLX's memory counters.
    pub fn memory(&self) -> Result<Usage> {
        memory::usage()
    }

    /// Starts the peak counter anew.
    pub fn reset_peak(&self) -> Result<()> {
        memory::reset_peak()
    }

    /// Starts a count of the calls into MLX, or ends it; gives what was counted until now.
    pub fn meter(&self, on: bool) -> Result<Meter> {
        self.owner.call(move |state| Ok(state.mlx.meter(on)))
    }

    /// What was done since the start.
    pub fn counters(&self) -> Result<Counters> {
        let calls = self.owner.calls();
        self.owner.call(move |state| {
            let mut builds = Builds::default();
            for of_model in state.models.values().map(Model::builds) {
                builds.direct += of_model.direct;
                builds.traced += of_model.traced;
                builds.replayed += of_model.replayed;
            }
            Ok(Counters {
                calls,
                evaluations: state.mlx.evaluations(),
                builds,
            })
        })
    }

    /// Copies a host tensor to MLX.
    pub fn upload(&self, tensor: HostTensor) -> Result<Tensor> {
        let owner = self.owner.clone();
        self.owner
            .call(move |state| Tensor::new(state, &owner, tensor.to_array()?))
    }

    /// Uses another library's tensor where it lies, if MLX can, or copies it.
    pub fn borrow(&self, tensor: Imported) -> Result<Tensor> {
        let owner = self.owner.clone();
        self.owner.call(move |state| {
            let array = weights::borrow(&state.mlx, tensor)?;
            Tensor::new(state, &owner, array)
        })
    }

    /// Computes tensors, all together.
    pub fn evaluate(&self, tensors: &[&Tensor]) -> Result<()> {
        let ids: Vec<u64> = tensors.iter().map(|tensor| tensor.id()).collect();
        self.owner.call(move |state| {
            let arrays: Vec<Array> = ids
                .iter()
                .map(|id| tensor::find(state, *id).cloned())
                .collect::<Result<_>>()?;
            state.evaluate(&arrays)
        })
    }

    /// Tensors that handles refer to.
    pub fn num_tensors(&self) -> Result<usize> {
        self.owner.call(|state| Ok(state.tensors.len()))
    }

    /// Frees all models, tensors and MLX's cache, and ends the thread.
    pub fn close(&self) {
        self.owner.close();
    }

    /// Begins to load a model.
    pub fn begin_loading(&self) -> Result<Loading> {
        let id = self.owner.call(|state| {
            let id = state.new_id();
            state.loading.insert(id, Parameters::default());
            Ok(id)
        })?;
        Ok(Loading {
            id,
            owner: self.owner.clone(),
        })
    }
}

/// A model whose parameters are being collected (see [`super::weights::required`]). Dropping it frees
/// them.
pub struct Loading {
    id: u64,
    owner: Arc<Owner>,
}

impl Loading {
    /// Adds a parameter. Where MLX has to copy it, its source is free when this returns.
    ///
    /// # Errors
    /// Names the parameter.
    pub fn add(&self, path: String, source: Source) -> Result<()> {
        let id = self.id;
        self.owner.call(move |state| {
            let parameters = state.loading.get_mut(&id).ok_or(Error::Closed)?;
            parameters.add(&state.mlx, path, source)
        })
    }

    /// Adds a parameter that is in MLX already.
    pub fn share(&self, path: String, tensor: &Tensor) -> Result<()> {
        let (id, shared) = (self.id, tensor.id());
        self.owner.call(move |state| {
            let array = tensor::find(state, shared)?.clone();
            let parameters = state.loading.get_mut(&id).ok_or(Error::Closed)?;
            parameters.share(path, array);
            Ok(())
        })
    }

    /// Binds the parameters to a plan and runs its folds. The model keeps the graphs of
    /// `kept_shapes` shapes of decode steps; 0 builds every step anew.
    ///
    /// # Errors
    /// A parameter that is missing or not as the plan says, or a fold that fails.
    pub fn finish(
        self,
        plan: Plan,
        islands: Option<Box<dyn IslandRunner>>,
        kept_shapes: usize,
    ) -> Result<LoadedModel> {
        let id = self.id;
        let report = self.owner.call(move |state| {
            let parameters = state.loading.remove(&id).ok_or(Error::Closed)?;
            let (model, report) = Model::load(&state.mlx, plan, parameters, islands, kept_shapes)?;
            state.models.insert(id, model);
            Ok(report)
        })?;
        Ok(LoadedModel {
            id,
            owner: self.owner.clone(),
            report,
        })
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        let id = self.id;
        self.owner
            .post(move |state| drop(state.loading.remove(&id)));
    }
}

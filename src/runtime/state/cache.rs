// SPDX-License-Identifier: Apache-2.0
//! States of requests: one array `[num_slots, ..state]` for each state of a layer, updated in place.

use crate::runtime::error::{Error, Result};
use crate::runtime::memory;
use crate::runtime::mlx::{Array, Mlx};
use lowering::ir::DType;
use lowering::plan::StateLayer;

/// What one cache is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateSpec {
    /// Layers that share the cache, by name: their slots are distinct.
    pub layers: Vec<String>,
    /// Slots that requests may use.
    pub num_slots: usize,
    /// Element type of each state.
    pub dtypes: Vec<DType>,
}

/// The states of a layer, or of layers that share the slots.
pub struct StateCache {
    pub arrays: Vec<Array>,
    pub num_slots: usize,
}

/// The states of a model.
pub struct StateCaches {
    pub caches: Vec<StateCache>,
    /// Index into `caches` by the plan's state layer.
    cache_of_layer: Vec<Option<usize>>,
}

impl StateCaches {
    /// Allocates and clears the states.
    ///
    /// # Errors
    /// An unknown or doubly given layer, layers of different shape in one cache, a size of zero, or
    /// more memory than MLX's limit leaves.
    pub fn allocate(mlx: &Mlx, layers: &[StateLayer], specs: &[StateSpec]) -> Result<StateCaches> {
        let mut cache_of_layer = vec![None; layers.len()];
        let mut shapes = Vec::with_capacity(specs.len());
        let mut total = 0u64;
        for (index, spec) in specs.iter().enumerate() {
            let of_spec = claim(layers, spec, index, &mut cache_of_layer)?;
            for (shape, dtype) in of_spec.iter().zip(&spec.dtypes) {
                let elements = shape.iter().map(|size| *size as u64);
                let bytes = elements.fold(dtype.size() as u64, u64::saturating_mul);
                total = total.saturating_add(bytes);
            }
            shapes.push(of_spec);
        }
        memory::require("the recurrent states", total, "allocate fewer blocks")?;
        let mut caches = Vec::with_capacity(specs.len());
        for (spec, shapes) in specs.iter().zip(shapes) {
            let mut arrays = Vec::with_capacity(shapes.len());
            for (shape, dtype) in shapes.iter().zip(&spec.dtypes) {
                let array = mlx.zeros(shape, *dtype)?;
                // One at a time: evaluating all at once would hold temporaries of all.
                mlx.eval([&array])?;
                arrays.push(array);
            }
            caches.push(StateCache {
                arrays,
                num_slots: spec.num_slots,
            });
        }
        Ok(StateCaches {
            caches,
            cache_of_layer,
        })
    }

    /// Index of the cache of a plan's state layer.
    ///
    /// # Errors
    /// The layer has none.
    pub fn index(&self, layers: &[StateLayer], layer: usize) -> Result<usize> {
        let index = self.cache_of_layer.get(layer).copied().flatten();
        index.ok_or_else(|| {
            let name = layers.get(layer).map_or("?", |layer| layer.name.as_str());
            Error::KvCache(format!("layer {name:?} has no states; allocate them first"))
        })
    }

    /// All arrays.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.caches.iter().flat_map(|cache| &cache.arrays)
    }

    /// Bytes of all states.
    pub fn nbytes(&self) -> usize {
        self.arrays().map(|array| array.nbytes()).sum()
    }
}

/// Gives the spec's layers the cache of that index; returns the shapes of its arrays.
fn claim(
    layers: &[StateLayer],
    spec: &StateSpec,
    index: usize,
    cache_of_layer: &mut [Option<usize>],
) -> Result<Vec<Vec<i32>>> {
    let mut states: Option<&Vec<Vec<i64>>> = None;
    for name in &spec.layers {
        let position = layers
            .iter()
            .position(|layer| layer.name == *name)
            .ok_or_else(|| Error::KvCache(format!("the model has no state layer {name:?}")))?;
        if cache_of_layer[position].replace(index).is_some() {
            return Err(Error::KvCache(format!("layer {name:?} is given twice")));
        }
        let of_layer = &layers[position].states;
        if states.is_some_and(|states| states != of_layer) {
            let reason = format!("layers of different states share them: {:?}", spec.layers);
            return Err(Error::KvCache(reason));
        }
        states = Some(of_layer);
    }
    let states = states.ok_or_else(|| Error::KvCache("states of no layer".to_owned()))?;
    if spec.num_slots == 0
        || spec.dtypes.len() != states.len()
        || spec.dtypes.iter().any(|dtype| !dtype.is_float())
    {
        let reason = format!(
            "{} slots of {} states in {:?} for {:?}",
            spec.num_slots,
            states.len(),
            spec.dtypes,
            spec.layers
        );
        return Err(Error::KvCache(reason));
    }
    let slots = i64::try_from(spec.num_slots).unwrap_or(i64::MAX);
    states
        .iter()
        .map(|shape| {
            let sizes = std::iter::once(slots).chain(shape.iter().copied());
            let sizes: std::result::Result<Vec<i32>, _> = sizes.map(i32::try_from).collect();
            sizes.map_err(|_| Error::KvCache(format!("{slots} slots of {shape:?} are too many")))
        })
        .collect()
}

// SPDX-License-Identifier: Apache-2.0
//! Loading, allocation, islands, and the life of tensors across threads.

use super::*;

#[test]
fn parameters_are_checked_and_counted() {
    let runtime = runtime();
    assert_eq!(required(&plan(false)), ["head", "scale", "table"]);
    let report = loaded(&runtime).report;
    assert_eq!(report.parameters, 3);
    assert_eq!(report.borrowed_bytes + report.copied_bytes, 112);
    assert_eq!(report.folded_bytes, 8);

    let load = |change: &dyn Fn(&mut HashMap<String, Source>)| {
        let mut sources = sources(&runtime);
        change(&mut sources);
        load(&runtime, plan(false), sources, None)
            .err()
            .unwrap()
            .to_string()
    };
    let missing = load(&|sources| drop(sources.remove("table")));
    assert_eq!(
        missing,
        "parameter \"table\": it is missing from the checkpoint"
    );
    let wrong = load(&|sources| {
        let tensor = foreign(&runtime, &[0.0; 6], &[2, 3]);
        sources.insert("table".into(), Source::Tensor(tensor));
    });
    assert_eq!(
        wrong,
        "parameter \"table\": expected float32[10,2], found float32[2, 3]"
    );
}

#[test]
fn a_cache_that_cannot_be_is_refused() {
    let runtime = runtime();
    let model = load(&runtime, plan(false), sources(&runtime), None).unwrap();
    let run = model.run("backbone", ids(&[1]), request(0, 1, 0));
    assert!(run.err().unwrap().to_string().contains("allocate it first"));
    let refused = |specs: Vec<CacheSpec>| model.allocate_kv_cache(specs, Vec::new()).unwrap_err();
    let huge = refused(spec(Pages {
        num_blocks: 1 << 24,
        block_size: 100,
    }));
    assert_eq!(huge.kind(), ErrorKind::Memory, "{huge}");
    assert!(huge.to_string().contains("allocate fewer blocks"));
    for (specs, part) in [
        (
            spec(Pages {
                num_blocks: 0,
                block_size: 4,
            }),
            "0 blocks of 4 tokens",
        ),
        (
            spec(Pages {
                num_blocks: usize::MAX / 8,
                block_size: 4,
            }),
            "are too many",
        ),
        ([spec(PAGES), spec(PAGES)].concat(), "is given twice"),
        (
            vec![CacheSpec {
                layers: vec!["?".into()],
                pages: PAGES,
                dtype: DType::Float32,
            }],
            "no layer \"?\"",
        ),
    ] {
        let error = refused(specs);
        assert!(
            error.kind() == ErrorKind::BadInput && error.to_string().contains(part),
            "{error}"
        );
    }
}

/// Doubles its operand, as PyTorch would.
struct Doubling;

impl IslandRunner for Doubling {
    fn run(&self, target: &str, _: &str, mut operands: Vec<Exported>) -> Result<Vec<Imported>> {
        assert_eq!(target, "aten.double");
        let operand = operands.remove(0);
        let size = operand.shape().iter().product::<i64>() as usize;
        // SAFETY: exported memory is float32, row-major and alive, and nothing else reads it.
        let values = unsafe { std::slice::from_raw_parts_mut(operand.data().cast::<f32>(), size) };
        values.iter_mut().for_each(|value| *value *= 2.0);
        // SAFETY: a live tensor that nobody else takes over.
        Ok(vec![unsafe { Imported::new(into_dlpack(operand)) }?])
    }
}

#[test]
fn an_island_runs_between_lowered_nodes() {
    let runtime = runtime();
    let model = load(
        &runtime,
        plan(true),
        sources(&runtime),
        Some(Box::new(Doubling)),
    )
    .unwrap();
    model.allocate_kv_cache(spec(PAGES), Vec::new()).unwrap();
    let output = model.run("backbone", ids(&[6]), request(0, 1, 0)).unwrap();
    let [a, b] = table_row(6);
    assert_eq!(floats(&output[0]), [a * 4.0, b * 2.0]);

    let none = load(&runtime, plan(true), sources(&runtime), None).unwrap();
    none.allocate_kv_cache(spec(PAGES), Vec::new()).unwrap();
    let error = none
        .run("backbone", ids(&[6]), request(0, 1, 0))
        .err()
        .unwrap()
        .to_string();
    assert_eq!(
        error,
        "graph \"backbone\", step 0, region 0, instruction 2, island: island aten.double: no runner was given at load"
    );
}

#[test]
fn tensors_dropped_in_another_thread_free_their_arrays() {
    let runtime = runtime();
    let model = loaded(&runtime);
    let lazy = model.run("backbone", ids(&[3]), request(0, 1, 0)).unwrap();
    let computed = model.run("backbone", ids(&[4]), request(0, 1, 0)).unwrap();
    let exported = computed[0].export().unwrap();
    assert_eq!(runtime.num_tensors().unwrap(), 2);
    std::thread::spawn(move || drop((lazy, computed, exported)))
        .join()
        .unwrap();
    assert_eq!(runtime.num_tensors().unwrap(), 0);
}

#[test]
fn exported_memory_outlives_the_runtime_and_later_calls_fail() {
    let runtime = runtime();
    let model = loaded(&runtime);
    let output = model.run("backbone", ids(&[3]), request(0, 1, 0)).unwrap();
    let exported = output[0].export().unwrap();
    runtime.close();
    // SAFETY: exported memory is two float32, and alive.
    let found = unsafe { std::slice::from_raw_parts(exported.data().cast::<f32>(), 2) };
    assert_close(found, &expected(&[3]));
    drop(exported);
    let error = model
        .run("backbone", ids(&[3]), request(0, 1, 0))
        .err()
        .unwrap();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Failure, "the runtime is closed")
    );
    assert!(matches!(output[0].export().err().unwrap(), Error::Closed));
}

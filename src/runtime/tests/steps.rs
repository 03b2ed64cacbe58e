// SPDX-License-Identifier: Apache-2.0
//! Steps: their results, the cache they leave, and what they refuse.

use super::*;

const IDS: [usize; 6] = [3, 1, 9, 0, 4, 7];

#[test]
fn a_request_in_chunks_equals_the_definition() {
    let runtime = runtime();
    let model = loaded(&runtime);
    let expected = expected(&IDS);
    let step = |tokens: &[i64], metadata| model.run("backbone", ids(tokens), metadata).unwrap();
    let first = step(&[3, 1, 9, 0, 5, 5], request(0, 3, 3)).remove(0);
    assert_eq!(first.shape(), [6, 2]);
    // The first step is still lazy here: the second one settles it.
    let second = step(&[0, 4], request(3, 5, 0)).remove(0);
    let third = step(&[7], request(5, 6, 0)).remove(0);
    assert_close(&floats(&first.head(3).unwrap()), &expected[..3]);
    assert_close(&floats(&second), &expected[3..5]);
    assert_close(&floats(&third), &expected[5..]);
    let logits = model
        .logits(&second, Some(vec![1, 0, 1]))
        .unwrap()
        .remove(0);
    let rows = [expected[4], expected[3], expected[4]];
    let products: Vec<f64> = rows.iter().flat_map(|[a, b]| [*a, *b, a + b]).collect();
    for (found, expected) in floats(&logits).iter().zip(products) {
        assert!((f64::from(*found) - expected).abs() < 1e-6);
    }
}

#[test]
fn a_step_updates_the_cache_in_place_and_padding_goes_to_the_dump_block() {
    let runtime = runtime();
    let model = loaded(&runtime);
    let before = model.cache_address(LAYER).unwrap();
    for (start, id) in IDS.iter().enumerate() {
        let output = model
            .run(
                "backbone",
                ids(&[*id as i64, 8]),
                request(start, start + 1, 1),
            )
            .unwrap();
        let logits = model.logits(&output[0], Some(vec![0])).unwrap();
        assert_eq!(floats(&logits[0]).len(), 3);
        assert_eq!(
            model.cache_address(LAYER).unwrap(),
            before,
            "step {start} copied the cache"
        );
    }

    let rows = model.cache_rows(LAYER).unwrap();
    assert_eq!(rows.shape, [28, 1, 4]);
    let rows: Vec<f32> = rows
        .bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| f32::from_ne_bytes(*word))
        .collect();
    let row = |slot: usize| &rows[slot * 4..][..4];
    let value = |id: usize| {
        let [a, b] = table_row(id);
        [a * 2.0, b, a * 2.0, b]
    };
    for (position, id) in IDS.iter().enumerate() {
        assert_eq!(row([4, 2][position / 4] * 4 + position % 4), value(*id));
    }
    assert_eq!(row(24), value(8), "padding is written to the dump block");
    for untouched in (0..28).filter(|slot| ![8, 9, 16, 17, 18, 19, 24].contains(slot)) {
        assert_eq!(row(untouched), [0.0; 4], "slot {untouched}");
    }
}

#[test]
fn what_is_out_of_range_is_refused_before_anything_changes() {
    let runtime = runtime();
    let model = loaded(&runtime);
    let error = |inputs, metadata| {
        let error: Error = model.run("backbone", inputs, metadata).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
        error.to_string()
    };
    let before = model.cache_rows(LAYER).unwrap();
    assert!(
        error(ids(&[10]), request(0, 1, 0)).contains("element 0 is 10, and it must be from 0 to 9")
    );
    assert!(error(ids(&[0, -1]), request(0, 2, 0)).contains("element 1 is -1"));
    let mut wrong = request(0, 1, 0);
    let Requests::Attention(metadata) = &mut wrong[0].1 else {
        panic!("attention expected");
    };
    Arc::make_mut(metadata).slot_mapping[0] = 24;
    assert!(error(ids(&[1]), wrong).contains("slot 24, and the cache has 24 slots"));
    assert!(error(ids(&[1]), request(0, 2, 0)).contains("2 of 1 tokens"));
    assert!(error(ids(&[1]), vec![]).contains("none is given for layer \"layers.0.attn\""));
    assert!(error(vec![], request(0, 1, 0)).contains("input \"input_ids\" is missing"));
    let mut extra = ids(&[1]);
    extra.push((
        "more".into(),
        Argument::Host(HostTensor {
            dtype: DType::Bool,
            shape: vec![0],
            bytes: vec![],
        }),
    ));
    assert!(error(extra, request(0, 1, 0)).contains("there is no input \"more\""));
    let floats = HostTensor {
        dtype: DType::Float32,
        shape: vec![1],
        bytes: vec![0; 4],
    };
    let wrong = vec![("input_ids".into(), Argument::Host(floats))];
    assert!(error(wrong, request(0, 1, 0)).contains("integers expected and float32 given"));
    assert!(
        model
            .run("nothing", vec![], vec![])
            .err()
            .unwrap()
            .to_string()
            .contains("[\"backbone\", \"logits\"]")
    );
    assert_eq!(model.cache_rows(LAYER).unwrap(), before);
    let good = model.run("backbone", ids(&[3]), request(0, 1, 0)).unwrap();
    assert_close(&self::floats(&good[0]), &expected(&[3]));
    assert!(
        good[0]
            .rows(vec![1])
            .err()
            .unwrap()
            .to_string()
            .contains("row 1 of a tensor with 1 rows")
    );
    assert!(good[0].head(2).is_err());
    assert!(model.logits(&good[0], Some(vec![-1])).is_err());
}

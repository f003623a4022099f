//! The simulation against queues whose answers are known.

use super::*;

/// Of every image here: 64 steps of a millisecond, whatever is in them.
const STEPS: u32 = 64;
const SERVICE: f64 = 0.064;

fn fleet(replicas: u32, slots: u32, queue_images: u32) -> Fleet {
    let steps = StepTimes::new(&[(u32::MAX, slots, 1000.0)], STEPS).unwrap();
    Fleet { replicas, per_machine: 1, shards: 1, slots, queue_images, balance: Balance::Least, steps }
}

fn demand(law: Law, rate: f64, seconds: u64) -> Demand {
    let (warmup, duration) = (Duration::from_secs(seconds / 10), Duration::from_secs(seconds));
    let arrivals = Arrivals::new(law, rate, 8, 3, warmup + duration);
    Demand { arrivals, images: 1, seed: 3, warmup, duration, slo: Duration::from_millis(64) }
}

fn run(fleet: &Fleet, demand: &Demand) -> Outcome {
    simulate(fleet, demand).unwrap()
}

fn near(a: f64, b: f64, within: f64) -> bool {
    (a - b).abs() <= within * b
}

#[test]
fn whoever_comes_alone_waits_for_nobody() {
    let outcome = run(&fleet(1, 1, 10), &demand(Law::Constant, 10.0, 100));
    assert_eq!((outcome.goodput_share, outcome.refused_share, outcome.mean_wait_us), (1.0, 0.0, 0.0));
    let image = outcome.image_us.unwrap();
    assert!(near(image.p50 as f64, 64_000.0, 1e-3) && near(image.max as f64, 64_000.0, 1e-3), "{image:?}");
    assert!(near(outcome.busy_share, 0.64, 1e-3) && near(outcome.images_per_s, 10.0, 1e-3), "{outcome:?}");
}

#[test]
fn a_full_replica_makes_slots_by_step_time() {
    let mut full = fleet(1, 16, 100);
    full.steps = StepTimes::new(&[(1, 1, 1000.0), (1, 16, 4000.0)], STEPS).unwrap();
    let outcome = run(&full, &demand(Law::Poisson, 200.0, 60));
    assert!(near(outcome.images_per_s, 16.0 / (64.0 * 0.004), 0.005), "{outcome:?}");
    assert!(near(outcome.busy_share, 1.0, 1e-9) && near(outcome.images_per_step, 16.0, 0.01), "{outcome:?}");
    assert!(near(outcome.refused_share, 1.0 - 62.5 / 200.0, 0.02), "{outcome:?}");
    // The last of a full queue waits for 100 / 16 rounds of those before it, and a little.
    let round = 64.0 * 0.004;
    let longest = outcome.wait_us.unwrap().max as f64 / 1e6;
    assert!(longest > 100.0 / 16.0 * round * 0.95 && longest < (100.0 / 16.0 + 1.0) * round, "{longest}");
}

/// Pollaczek and Khinchine: with a constant service time S and a load of r, the mean wait is r S / 2 (1 - r).
#[test]
fn one_slot_is_an_m_d_1_queue() {
    for load in [0.3, 0.5, 0.7] {
        // In two steps: more would only take longer.
        let steps = StepTimes::new(&[(1, 1, 32_000.0)], 2).unwrap();
        let outcome = run(&Fleet { steps, ..fleet(1, 1, 1000) }, &demand(Law::Poisson, load / SERVICE, 20_000));
        let wait = load * SERVICE / (2.0 * (1.0 - load));
        assert!(near(outcome.mean_wait_us / 1e6, wait, 0.05), "{load}: {} {wait}", outcome.mean_wait_us);
        assert!(near(outcome.busy_share, load, 0.02), "{load}: {}", outcome.busy_share);
    }
}

/// Erlang: of those who find c places at an offered load of a, a share B(c, a) is refused, whatever the service times are.
#[test]
fn slots_without_a_queue_refuse_as_erlang_says() {
    let (slots, offered) = (4, 3.0);
    let blocked = (1..=slots).fold(1.0, |blocked, c| offered * blocked / (f64::from(c) + offered * blocked));
    let outcome = run(&fleet(1, slots, 0), &demand(Law::Poisson, offered / SERVICE, 2000));
    // An image begins with the next step, so it has its slot for half a step more in the mean.
    assert!(near(outcome.refused_share, blocked, 0.03), "{} {blocked}", outcome.refused_share);
    assert!(outcome.wait_us.unwrap().max <= 1000, "no more than the step that is under way");
}

#[test]
fn under_perfect_balance_n_replicas_are_n_times_one() {
    let one = run(&fleet(1, 4, 50), &demand(Law::Constant, 60.0, 50));
    for replicas in [2, 7] {
        let mut many = fleet(replicas, 4, 50);
        many.balance = Balance::RoundRobin;
        // As evenly spread over the replicas as over the one.
        let outcome = run(&many, &demand(Law::Constant, 60.0 * f64::from(replicas), 50));
        assert!(near(outcome.images_per_s, one.images_per_s * f64::from(replicas), 1e-3), "{outcome:?}");
        assert_eq!(outcome.refused_share, one.refused_share);
        assert!(near(outcome.image_us.unwrap().p99 as f64, one.image_us.unwrap().p99 as f64, 0.01), "{outcome:?}");
    }
    let [full, fuller] = [1, 5].map(|n| run(&fleet(n, 4, 50), &demand(Law::Poisson, 100.0 * f64::from(n), 50)));
    assert!(near(fuller.images_per_s, full.images_per_s * 5.0, 0.01), "{fuller:?}");
}

#[test]
fn the_more_a_balancer_knows_the_shorter_is_the_wait() {
    let p99 = [Balance::Random, Balance::TwoChoices, Balance::Least].map(|balance| {
        let fleet = Fleet { balance, ..fleet(10, 4, 1000) };
        run(&fleet, &demand(Law::Poisson, 0.9 * 10.0 * 4.0 / SERVICE, 100)).wait_us.unwrap().p99
    });
    assert!(p99[0] > 2 * p99[1] && p99[1] > p99[2], "{p99:?}");
}

#[test]
fn replicas_of_one_machine_slow_each_other_down() {
    let steps = StepTimes::new(&[(1, 4, 1000.0), (2, 4, 2000.0)], STEPS).unwrap();
    let alone = Fleet { steps: steps.clone(), ..fleet(1, 4, 50) };
    let shared = Fleet { steps: steps.clone(), per_machine: 2, ..fleet(2, 4, 50) };
    let apart = Fleet { steps, ..fleet(2, 4, 50) };
    let [alone, shared, apart] =
        [alone, shared, apart].map(|fleet| run(&fleet, &demand(Law::Poisson, 200.0, 50)).images_per_s);
    assert!(near(shared, alone, 0.01) && near(apart, 2.0 * alone, 0.01), "{alone} {shared} {apart}");
}

#[test]
fn shards_divide_the_images_of_a_request() {
    let two = Fleet { shards: 2, ..fleet(1, 2, 50) };
    let alone = Demand { images: 4, ..demand(Law::Constant, 5.0, 20) };
    let outcome = run(&two, &alone);
    assert_eq!(outcome.mean_wait_us, 0.0, "each has the slots of both");
    assert!(near(outcome.images_per_step, 2.0, 1e-9) && near(outcome.images_per_s, 20.0, 1e-3), "{outcome:?}");
}

#[test]
fn a_seed_gives_the_same_outcome_every_time_and_another_seed_another() {
    let fleet = Fleet { balance: Balance::TwoChoices, ..fleet(3, 4, 50) };
    let demand = |seed| Demand {
        arrivals: Arrivals::new(Law::Poisson, 150.0, 8, seed, Duration::from_secs(22)),
        seed,
        ..demand(Law::Poisson, 150.0, 20)
    };
    assert_eq!(run(&fleet, &demand(1)), run(&fleet, &demand(1)));
    assert_ne!(run(&fleet, &demand(1)), run(&fleet, &demand(2)));
}

#[test]
fn the_fewest_that_suffice_are_found_in_a_few_looks() {
    for wanted in [1, 2, 3, 777, MAX_REPLICAS] {
        let mut looks = 0;
        let found = fewest(|replicas| {
            looks += 1;
            Ok(replicas >= wanted)
        });
        assert_eq!(found, Ok(Some(wanted)));
        assert!(looks < 40, "{looks}");
    }
    assert_eq!(fewest(|_| Ok(false)), Ok(None));
}

fn measured(model: &str, backend: &str, threads: u32, batch: u32, mean: f64) -> Step {
    let line = serde_json::json!({
        "model": model, "backend": backend, "precision": "f32", "threads": threads, "batch": batch, "repeat": 0,
        "steps": 9, "step_us": {"mean": mean, "median": mean, "min": mean, "max": mean},
        "images_per_s": f64::from(batch * threads) * 1e6 / (mean * 64.0),
    });
    serde_json::from_value(line).unwrap()
}

#[test]
fn records_of_one_model_tell_its_steps_and_those_of_several_do_not() {
    let steps = [
        measured("a", "native", 1, 1, 100.0),
        measured("a", "native", 2, 16, 900.0),
        measured("a", "torch", 1, 1, 400.0),
        measured("b", "native", 1, 1, 50.0),
    ];
    let times = recorded(&steps, Some("a"), "native").unwrap();
    assert_eq!(times.of_an_image, 64);
    assert_eq!(times.step(1, 1), Duration::from_micros(100));
    assert_eq!(times.step(2, 16), Duration::from_micros(900));
    assert!(recorded(&steps, None, "native").unwrap_err().contains("got a (f32), b (f32)"));
    assert!(recorded(&steps, None, "cuda").unwrap_err().contains("no step of any model on cuda"));
    let mut broken = measured("a", "native", 1, 1, 100.0);
    broken.step_us.mean = -1.0;
    assert!(recorded(&[broken], None, "native").unwrap_err().contains("take time"));
}

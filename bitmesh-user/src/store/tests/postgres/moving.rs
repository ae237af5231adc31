//! A lone box's ledger moves in.

use bitmesh_core::{account::AccountId, fleet::Member};

use super::*;

/// A lone box, and the fleet that it is to be an edge of.
struct Mover {
    directory: TempDir,
    fleet: Fleet,
    entries: Vec<Entry<Event>>,
}

impl Home for Mover {
    fn place(&self) -> Place {
        Place::file(self.directory.path())
    }

    async fn execute(&self, _statement: &str) {}
}

impl Mover {
    /// Channels 1 and 2 are of account 1, channel 3 of its own; the first events are folded.
    async fn new(database: &Database, edge: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let fleet = fleet(&database.url(), edge);
        let entries = vec![
            event(3, Event::Opened(0)),
            event(1, Event::Opened(1)),
            event(2, Event::Opened(2)),
            event(3, Event::Paid(4)),
            event(1, Event::Paid(3)),
            event(2, Event::Paid(5)),
            block(10),
            block(11),
            usage(1, 7),
            usage(2, 9),
            // Nobody pays for it: it stays behind.
            usage(3, 11),
        ];
        let lone = Self { directory, fleet, entries };
        let (mut store, _) = loaded(&lone).await;
        store.commit(&lone.entries[..4], Some("{}")).await.unwrap();
        store.tidy_beyond::<Event>(0, |_| false).await.unwrap();
        store.commit(&lone.entries[4..], Some("more")).await.unwrap();
        store.set("budget", "5").await.unwrap();
        store.close().await.unwrap();
        lone
    }

    /// As an edge of the fleet.
    fn edge(&self) -> Place {
        Place { fleet: Some(self.fleet.clone()), ..self.place() }
    }

    async fn open_edge(&self) -> Result<Store, StoreError> {
        let place = self.edge();
        Store::open(&place, StoreRole::Provider, Network::Regtest).await
    }

    async fn begin(&self) -> Result<Moving, StoreError> {
        let place = self.edge();
        let begun = Moving::begin::<Event>(&place, Network::Regtest);
        let (moving, entries) = begun.await?;
        assert_eq!(entries, self.entries);
        Ok(moving)
    }

    async fn write(&self, dry: bool) -> Result<Written, StoreError> {
        self.begin().await?.write::<Event>(members().into_iter(), dry, |_, _| {}).await
    }

    /// All of it, as the command does it.
    async fn run(&self) -> Result<Moved, StoreError> {
        match self.begin().await?.finish().await? {
            Ok(moved) => Ok(moved),
            Err(moving) => {
                drop(moving);
                self.write(false).await?.commit().await
            }
        }
    }

    /// The edge has everything, in order, and goes on from it.
    async fn check_moved(&self) {
        let mut store = self.open_edge().await.unwrap();
        assert_eq!(store.load::<Event>().await.unwrap(), self.entries[..self.entries.len() - 1]);
        assert_eq!(store.wallet_changes().await.unwrap(), ["{}", "more"]);
        assert_eq!(store.setting("budget").await.unwrap().as_deref(), Some("5"));
        let later = [event(3, Event::Paid(6)), event(1, Event::Paid(7))];
        store.commit(&later, None).await.unwrap();
        store.tidy_beyond::<Event>(0, |_| false).await.unwrap();
        store.close().await.unwrap();
        let mut store = self.open_edge().await.unwrap();
        let found = store.load::<Event>().await.unwrap();
        let mut all = self.entries[..3].to_vec();
        all.push(event(2, Event::Paid(5)));
        all.extend(later);
        assert_eq!(found[..6], all);
        store.close().await.unwrap();
        // The box by itself is nobody any more.
        let error = open(self).await.unwrap_err();
        assert!(matches!(error, StoreError::OfFleet(_)), "{error}");
    }

    /// Nothing has come of it.
    async fn check_stayed(&self) {
        let (store, found) = loaded(self).await;
        assert_eq!(found, self.entries);
        store.close().await.unwrap();
    }
}

fn station(number: u8) -> Member {
    match usage(number, 0) {
        Entry::Usage { station, .. } => Member::Station(station),
        _ => panic!("a station"),
    }
}

fn members() -> Vec<(Member, AccountId)> {
    let of = |channel: u32, account: u32| (Member::Channel(id(channel)), id(account).into());
    vec![of(1, 1), of(2, 1), of(3, 3), (station(1), id(1).into()), (station(2), id(3).into())]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_ledger_moves_whole_and_the_box_by_itself_is_nobody_any_more() {
    let database = Database::fresh();
    let lone = Mover::new(&database, "tower").await;
    let dry = lone.write(true).await.unwrap().moved().clone();
    assert_eq!((dry.accounts, dry.channels, dry.stations, dry.aside), (2, 3, 2, None));
    lone.check_stayed().await;
    let moved = lone.run().await.unwrap();
    assert_eq!((moved.number, moved.accounts, moved.channels, moved.forgotten), (1, 2, 3, 0));
    assert!(moved.aside.unwrap().exists());
    let accounts = "SELECT COUNT(*) FROM accounts WHERE edge = 1 AND tip IS NULL";
    assert_eq!(database.sql(accounts), "2");
    lone.check_moved().await;
    let error = lone.begin().await.unwrap_err();
    assert!(matches!(error, StoreError::OfFleet(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_that_moved_gets_no_second_ledger_and_is_not_taken_over_before_it_starts() {
    let database = Database::fresh();
    let lone = Mover::new(&database, "tower").await;
    let copy = lone.directory.path().join("copy");
    let mut look = Look::open(&lone.place()).await.unwrap();
    look.back_up(&copy).await.unwrap();
    look.close().await.unwrap();
    let refused = async || {
        let place = lone.place();
        let restored = Restore::prepare(&place, &copy, true).await;
        let accepted = accept(&place).await;
        (restored.unwrap_err(), accepted.unwrap_err())
    };
    drop(lone.begin().await.unwrap().set_mark().await.unwrap());
    let errors = refused().await;
    assert!(matches!(errors, (StoreError::Moving { .. }, StoreError::Moving { .. })), "{errors:?}");
    lone.run().await.unwrap();
    let errors = refused().await;
    assert!(matches!(errors, (StoreError::OfFleet(_), StoreError::OfFleet(_))), "{errors:?}");
    // What its kernel grants has no end yet.
    let (mut other, _) = loaded(&database.edge("other")).await;
    let tower = async |other: &mut Store| {
        let edges = other.edges().await.unwrap();
        edges.into_iter().find(|edge| edge.name == "tower").unwrap()
    };
    let never = tower(&mut other).await;
    assert!(!take_over(&mut other, &never).await.unwrap());
    lone.check_moved().await;
    let started = tower(&mut other).await;
    assert!(take_over(&mut other, &started).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_ends_at_any_step_is_the_boxs_or_the_fleets_and_goes_on() {
    // The last step that was done: the mark, the rows, the commit.
    for step in 0..3 {
        let database = Database::fresh();
        let lone = Mover::new(&database, "tower").await;
        match step {
            0 => drop(lone.begin().await.unwrap().set_mark().await.unwrap()),
            1 => drop(lone.write(false).await.unwrap()),
            _ => lone.write(false).await.unwrap().conclude_alone().await.unwrap(),
        }
        let error = open(&lone).await.unwrap_err();
        assert!(matches!(error, StoreError::Moving { .. }), "step {step}: {error}");
        assert!(error.to_string().contains("store move"), "{error}");
        let error = lone.open_edge().await.unwrap_err();
        assert!(matches!(error, StoreError::Lone(_)), "step {step}: {error}");
        let abandoned = lone.begin().await.unwrap().abandon().await;
        if step == 2 {
            let error = abandoned.unwrap_err().to_string();
            assert!(error.contains("finishes it"), "{error}");
        } else {
            abandoned.unwrap();
            lone.check_stayed().await;
        }
        let moved = lone.run().await.unwrap();
        assert_eq!(moved.number == 0, step == 2, "step {step}: {moved:?}");
        lone.check_moved().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_move_is_told_and_stays() {
    let database = Database::fresh();
    let lone = Mover::new(&database, "tower").await;
    let told = async |lone: &Mover| {
        let error = lone.run().await.unwrap_err().to_string();
        lone.begin().await.unwrap().abandon().await.unwrap();
        lone.check_stayed().await;
        error
    };
    // Who is there already: an edge with a station of ours.
    let (mut store, _) = loaded(&database.edge("other")).await;
    let Member::Station(taken) = station(2) else { panic!("a station") };
    let (mut write, changes) = store.known.batch(&[event(9, Event::Opened(3))], None).unwrap();
    let (account, station) = (*id(9).as_bytes(), taken.key().raw().cast_signed());
    write.fleet = vec![FleetChange::Station { station, account }];
    store.write(&write, changes).await.unwrap();
    store.close().await.unwrap();
    let error = told(&lone).await;
    assert!(error.contains("1 of its stations"), "{error}");
    database.sql("DELETE FROM station_members");
    let named = Mover { fleet: fleet(&database.url(), "other"), ..lone };
    let error = told(&named).await;
    assert!(error.contains("--edge"), "{error}");
    let mut seeds = Mover { fleet: fleet(&database.url(), "tower"), ..named };
    seeds.fleet.seed = "other words".into();
    let error = seeds.run().await.unwrap_err().to_string();
    assert!(error.contains("another seed"), "{error}");
    seeds.check_stayed().await;
    seeds.fleet.seed = "the same words".into();
    seeds.run().await.unwrap();
    // The keys of a second lone box would be the same.
    let second = Mover::new(&database, "tower-2").await;
    let error = told(&second).await;
    assert!(error.contains("another lone box"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_not_read_back_as_they_were_written_are_not_committed() {
    let database = Database::fresh();
    let lone = Mover::new(&database, "tower").await;
    open(&database.edge("first")).await.unwrap().close().await.unwrap();
    database.sql(
        "CREATE FUNCTION lie() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; \
         CREATE TRIGGER lies BEFORE INSERT ON usage FOR EACH ROW EXECUTE FUNCTION lie()",
    );
    let error = lone.run().await.unwrap_err().to_string();
    assert!(error.contains("usage read back"), "{error}");
    assert_eq!(database.sql("SELECT COUNT(*) FROM journal"), "0");
    database.sql("DROP TRIGGER lies ON usage");
    lone.run().await.unwrap();
    lone.check_moved().await;
}

//! A fleet: edges that share accounts through PostgreSQL.

use anyhow::Result;
use bitmesh_tests::{
    postgres::{Server, here},
    sweep::own_name,
};

/// What the tests of a fleet stand on.
#[test]
fn a_standby_has_what_the_primary_acknowledged() -> Result<()> {
    let mut primary = Server::start(&own_name("primary-"), here(), "")?;
    let socket = primary.socket().display().to_string();
    let mut standby = primary.standby(&own_name("standby-"), here(), &socket, "")?;
    primary.create("fleet")?;
    primary.sql("fleet", "CREATE TABLE paid AS SELECT 1 AS sum")?;
    primary.kill();
    standby.promote()?;
    assert_eq!(standby.sql("fleet", "SELECT sum FROM paid")?, "1");
    standby.sql("fleet", "INSERT INTO paid VALUES (2)")?;
    standby.stop()?;
    standby.launch()?;
    assert_eq!(standby.sql("fleet", "SELECT max(sum) FROM paid")?, "2");
    let left = (primary.socket().to_owned(), standby.socket().to_owned());
    drop((primary, standby));
    assert!(!left.0.exists() && !left.1.exists());
    Ok(())
}

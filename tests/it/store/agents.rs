//! What is stored of an agent that outlives the gateway.

use super::*;

fn stored(readers: &Readers, script: &Script) -> StoredAgent {
    readers.agent(script.agent).expect("readable").expect("it served a run")
}

fn numbers(agent: &StoredAgent) -> Vec<u64> {
    agent.commands.iter().map(|command| command.n).collect()
}

fn requests(agent: &StoredAgent) -> Vec<&str> {
    agent.answers.iter().map(|(request, _)| request.0.as_str()).collect()
}

#[test]
fn an_agent_that_served_several_runs_is_found_with_all_that_a_restart_needs() {
    let (dir, mut writer, readers) = fresh();
    let mut script = Script::new();
    assert!(readers.agent(script.agent).expect("readable").is_none(), "it served no run yet");

    script.start().command(1).commit(&mut writer);
    let agent = stored(&readers, &script);
    assert_eq!((agent.agent, agent.session), (script.agent, script.session));
    assert_eq!((agent.offset, agent.last_n, &agent.checkpoint), (0, 1, &None));
    assert_eq!(agent.open.expect("it runs").run.id, script.run);

    // The first run: five events up to offset 50, replies to the records that end at 20 and 40.
    let first = script.run;
    script.delivered(1);
    script.events(2).command_with(2, 20, None).events(2).command_with(3, 40, None);
    script.delivered(2).complete();
    script.checkpoint(30, "one").commit(&mut writer);
    let agent = stored(&readers, &script);
    assert_eq!(agent.newest.status, RunStatus::Completed);
    assert_eq!((agent.newest.id, agent.open.is_none()), (first, true), "warm, between two runs");
    assert_eq!((agent.offset, agent.last_n, numbers(&agent)), (50, 3, vec![3]));
    assert_eq!(agent.checkpoint, Some((30, b"one".to_vec())));
    assert_eq!(agent.causes, [40], "only what the checkpoint has not");
    assert_eq!(agent.commands[0].body, b"command 3");
    assert_eq!((agent.commands[0].cause, agent.commands[0].run), (40, first));

    // The second run, which the same process takes: its offsets go on.
    let warm = std::mem::replace(&mut script.agent, AgentId::from_u128(9));
    script.start().adopt(warm);
    script.agent = warm;
    let second = script.run;
    script.command(4).event(None);
    let Some(Item::Frame(frame)) = script.items.last_mut() else { panic!("a frame") };
    frame.offset = 80;
    script.command_with(5, 80, None).command_with(6, 80, None);
    script.checkpoint(60, "two").commit(&mut writer);
    let agent = stored(&readers, &script);
    assert_eq!((agent.newest.id, agent.offset, agent.last_n), (second, 80, 6));
    assert_eq!(numbers(&agent), [3, 4, 5, 6], "of all its runs, in the order of their numbers");
    assert_eq!(agent.checkpoint, Some((60, b"two".to_vec())), "one takes the other's place");
    assert_eq!(agent.causes, [80, 80], "each command counts");
    assert_eq!(agent.open.expect("it runs").run.id, second);

    // Another process of the same session.
    script.complete();
    let old = script.agent;
    script.agent = AgentId::from_u128(8);
    script.start().command(1).commit(&mut writer);
    let agent = readers.agent(old).expect("readable").expect("still known");
    assert_eq!((agent.newest.id, agent.open.is_none()), (second, true), "I6: not the other's run");
    assert_eq!(numbers(&stored(&readers, &script)), [1]);
    sound(dir.path());

    script.change(Change::AgentEnded { agent: old, at: T0 });
    script.change(Change::AgentEnded { agent: old, at: T0 }).commit(&mut writer);
    let agent = readers.agent(old).expect("readable").expect("its runs stay");
    assert_eq!(agent.checkpoint, None);
    sound(dir.path());
}

#[test]
fn an_answer_is_kept_whole_until_it_is_a_command() {
    let (dir, mut writer, readers) = fresh();
    let mut script = Script::new();
    script.start();
    for request in ["taken", "waiting", "cancelled"] {
        script.event(Some(asked(request)));
    }
    // Answered in another order than asked.
    for request in ["waiting", "cancelled", "taken"] {
        script.event(Some(allowed(request, AnswerState::Recorded)));
    }
    script.commit(&mut writer);
    assert_eq!(requests(&stored(&readers, &script)), ["taken", "waiting", "cancelled"]);

    script.command_with(1, 0, Some("taken"));
    script.event(Some(Mark::PermissionCancelled(RequestId("cancelled".into()))));
    script.commit(&mut writer);
    let agent = stored(&readers, &script);
    assert_eq!((requests(&agent), numbers(&agent)), (vec!["waiting"], vec![1]));
    let kept = &agent.answers[0].1;
    assert_eq!((kept.allow, kept.message.as_deref()), (true, Some("go")));
    assert_eq!(agent.commands[0].request, Some(RequestId("taken".into())));

    // The crash falls between the delivery and the event that tells of it.
    script.delivered(1).commit(&mut writer);
    assert_eq!(numbers(&stored(&readers, &script)), [1], "somebody has to tell of it");
    script.event(Some(allowed("taken", AnswerState::Delivered))).commit(&mut writer);
    assert_eq!(numbers(&stored(&readers, &script)), [0_u64; 0]);

    // The end of the run settles the other one, with or without a command.
    script.event(Some(allowed("waiting", AnswerState::Undeliverable))).complete();
    script.commit(&mut writer);
    assert_eq!(requests(&stored(&readers, &script)), [""; 0]);
    sound(dir.path());
}

#[test]
fn a_request_asked_again_does_not_take_the_command_of_before_for_its_own() {
    let (dir, mut writer, readers) = fresh();
    let mut script = Script::new();
    script.start();
    script.event(Some(asked("r"))).event(Some(allowed("r", AnswerState::Recorded)));
    script.command_with(1, 0, Some("r")).delivered(1);
    script.event(Some(allowed("r", AnswerState::Delivered))).event(Some(asked("r")));
    script.commit(&mut writer);
    let agent = stored(&readers, &script);
    assert_eq!((numbers(&agent), requests(&agent)), (vec![], vec![]), "it waits for a person");
    script.event(Some(allowed("r", AnswerState::Recorded))).commit(&mut writer);
    let agent = stored(&readers, &script);
    assert_eq!((numbers(&agent), requests(&agent)), (vec![], vec!["r"]), "of the second time");
    script.command_with(2, 0, Some("r")).delivered(2).commit(&mut writer);
    let agent = stored(&readers, &script);
    assert_eq!((numbers(&agent), requests(&agent)), (vec![2], vec![]), "the newest one");
    sound(dir.path());
}

#[test]
fn a_checkpoint_leaves_with_its_session_and_outlasts_retention() {
    let (dir, mut writer, readers) = fresh();
    let mut script = Script::new();
    script.start().command(1).events(3).complete();
    script.checkpoint(40, "warm").commit(&mut writer);
    let all_old = Keep { age_ms: 0, bytes_max: 1 };
    let retained = writer.retain(T0, all_old, 1_000, &mut || T0).expect("retains");
    assert_eq!(retained.pruned, [(script.session, script.run)]);
    let agent = stored(&readers, &script);
    assert_eq!((agent.offset, agent.checkpoint), (40, Some((40, b"warm".to_vec()))));
    assert!(agent.newest.pruned_at.is_some(), "its tombstone");
    // The number of before may be given again: the state in the checkpoint knows better.
    assert_eq!(agent.last_n, 0);
    script.start().command(2).complete().commit(&mut writer);
    sound(dir.path());

    script.change(Change::SessionDeleted);
    // The idle process ends after its session is gone.
    script.change(Change::AgentEnded { agent: script.agent, at: T0 });
    script.commit(&mut writer);
    assert!(readers.agent(script.agent).expect("readable").is_none());
    let conn = Connection::open(dir.path().join(DATABASE)).expect("opens");
    let left: i64 =
        conn.query_row("SELECT count(*) FROM checkpoint", [], |row| row.get(0)).expect("a number");
    assert_eq!(left, 0);
    sound(dir.path());
}

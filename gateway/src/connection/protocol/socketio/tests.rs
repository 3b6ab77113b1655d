use std::ops::Range;

use super::*;
use proptest::prelude::*;
use serde_json::Value;

const LIMIT_BYTES: usize = 1 << 20;

fn text(text: &str) -> Message {
    Message::Text(text.into())
}

fn payload(args: &str, attachments: &[&'static [u8]]) -> Payload {
    Payload { args: args.into(), attachments: attachments.iter().map(|bytes| Bytes::from_static(bytes)).collect() }
}

fn event_of(namespace: &str, name: &str, args: &str, ack: Option<AckId>) -> Input {
    Input::Event { namespace: namespace.into(), name: name.into(), data: payload(args, &[]), ack }
}

fn decode_one(packet: &str) -> Result<Option<Input>, DecodeError> {
    Decoder::new(LIMIT_BYTES).decode(text(packet))
}

/// Examples of the Socket.IO protocol document, and forms that clients are known to send.
#[test]
fn packets_mean_what_the_protocol_document_says() {
    let connect = |namespace: &str, auth: Option<&str>| Input::Connect {
        namespace: namespace.into(),
        auth: auth.map(str::to_owned),
    };
    for (packet, expected) in [
        ("40", connect("/", None)),
        ("40{}", connect("/", Some("{}"))),
        (r#"40{"token":"123"}"#, connect("/", Some(r#"{"token":"123"}"#))),
        ("40/admin,", connect("/admin", None)),
        ("40/admin", connect("/admin", None)),
        (r#"40/admin,{"sid":"oSO0OpakMV_3jnilAAAA"}"#, connect("/admin", Some(r#"{"sid":"oSO0OpakMV_3jnilAAAA"}"#))),
        ("40/admin?token=1&uid=a,{}", connect("/admin", Some("{}"))),
        ("40/,{}", connect("/", Some("{}"))),
        ("41", Input::Disconnect { namespace: "/".into() }),
        ("41/admin,", Input::Disconnect { namespace: "/admin".into() }),
        (r#"42["foo"]"#, event_of("/", "foo", "[]", None)),
        (r#"42/admin,["bar"]"#, event_of("/admin", "bar", "[]", None)),
        (r#"4212["foo"]"#, event_of("/", "foo", "[]", Some(12))),
        (r#"42/admin,13["bar", 1]"#, event_of("/admin", "bar", "[ 1]", Some(13))),
        (r#"42["hello",1,"2",{"three": 3.0}]"#, event_of("/", "hello", r#"[1,"2",{"three": 3.0}]"#, None)),
        ("42 [ \"a\\n\\u00e9\" \t, [ ] ] ", event_of("/", "a\né", "[ [ ] ]", None)),
        (r#"42["cut","\ud83d"]"#, event_of("/", "cut", r#"["\ud83d"]"#, None)),
        (r#"4218446744073709551615["x"]"#, event_of("/", "x", "[]", Some(u64::MAX))),
        ("4315[]", Input::Ack { namespace: "/".into(), id: 15, data: payload("[]", &[]) }),
        (r#"43/admin,13["bar"]"#, Input::Ack { namespace: "/admin".into(), id: 13, data: payload(r#"["bar"]"#, &[]) }),
        (r#"450-["none"]"#, event_of("/", "none", "[]", None)),
        ("2probe", Input::Ping("probe".into())),
        ("3", Input::Pong),
        ("5", Input::Upgrade),
        ("1", Input::Close),
    ] {
        assert_eq!(decode_one(packet), Ok(Some(expected)), "{packet}");
    }
    assert_eq!(decode_one("6"), Ok(None));
}

#[test]
fn packets_that_no_client_may_send_are_refused_with_the_reason() {
    use DecodeError::*;
    for (packet, expected) in [
        ("", Engine(PacketError::Empty)),
        ("0{}", Engine(PacketError::UnknownType)),
        ("4", Empty),
        ("44{\"message\":\"x\"}", UnknownType),
        ("47", UnknownType),
        ("4€", UnknownType),
        ("40[]", BadAuth),
        ("40{},{}", BadAuth),
        ("40{}][{}", BadAuth),
        ("40\"token\"", BadAuth),
        ("407{}", UnexpectedAckId),
        ("411", UnexpectedAckId),
        ("41{}", UnexpectedPayload),
        ("42", Arguments(ArgumentsError::NotJson("EOF while parsing a value at line 1 column 0".into()))),
        ("42{}", Arguments(ArgumentsError::NotAnArray)),
        ("42[]", NoEventName),
        ("42[1]", NoEventName),
        ("42[[\"a\"]]", NoEventName),
        (r#"42["\ud83d"]"#, NoEventName),
        (r#"42["connect"]"#, EventName(NameError::Reserved("connect"))),
        (r#"42["c\u006fnnect"]"#, EventName(NameError::Reserved("connect"))),
        (r#"42["a",{"_placeholder":true,"num":0}]"#, Arguments(ArgumentsError::DanglingPlaceholder(0))),
        ("43[]", NoAckId),
        ("431{}", Arguments(ArgumentsError::NotAnArray)),
        ("431", Arguments(ArgumentsError::NotJson("EOF while parsing a value at line 1 column 0".into()))),
        (r#"421234567890123456789012345["x"]"#, LongAckId(25)),
        (r#"4218446744073709551616["x"]"#, LargeAckId),
        (r#"42/a#b,["x"]"#, Namespace(NamespaceError::Character)),
        (r#"45["x"]"#, NoAttachmentCount),
        (r#"45-["x"]"#, NoAttachmentCount),
        (r#"455["x"]"#, NoAttachmentCount),
        (r#"4565-["x"]"#, TooManyAttachments(65)),
        (r#"4599999999999999999999999-["x"]"#, TooManyAttachments(usize::MAX)),
        (r#"451-["x"]"#, Arguments(ArgumentsError::UnusedAttachment(0))),
        (r#"451-["x",{"_placeholder":true,"num":1}]"#, Arguments(ArgumentsError::DanglingPlaceholder(1))),
    ] {
        assert_eq!(decode_one(packet), Err(expected), "{packet}");
    }
    assert_eq!(LongAckId(25).to_string(), "an ack id has at most 20 digits, this one has 25");
}

#[test]
fn attachments_complete_the_packet_that_announced_them() {
    let mut decoder = Decoder::new(LIMIT_BYTES);
    let packet = r#"452-/admin,3["baz",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]"#;
    assert_eq!(decoder.decode(text(packet)), Ok(None));
    assert_eq!(decoder.decode(Message::Binary(Bytes::from_static(&[1, 2]))), Ok(None));
    assert_eq!(decoder.decode(text("3")), Ok(Some(Input::Pong)), "a pong may come in between");
    assert_eq!(
        decoder.decode(Message::Binary(Bytes::from_static(&[3]))),
        Ok(Some(Input::Event {
            namespace: "/admin".into(),
            name: "baz".into(),
            data: payload(r#"[{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]"#, &[&[1, 2], &[3]]),
            ack: Some(3),
        }))
    );
    assert_eq!(decoder.decode(text(r#"461-15[{"_placeholder":true,"num":0}]"#)), Ok(None));
    assert_eq!(
        decoder.decode(Message::Binary(Bytes::new())),
        Ok(Some(Input::Ack {
            namespace: "/".into(),
            id: 15,
            data: payload(r#"[{"_placeholder":true,"num":0}]"#, &[&[]])
        }))
    );
}

#[test]
fn messages_that_break_the_sequence_of_a_binary_packet_are_refused() {
    let announce = r#"451-["x",{"_placeholder":true,"num":0}]"#;
    let bytes = || Message::Binary(Bytes::from_static(&[0; 10]));
    let mut decoder = Decoder::new(LIMIT_BYTES);
    assert_eq!(decoder.decode(bytes()), Err(DecodeError::UnexpectedAttachment));
    assert_eq!(decoder.decode(text(announce)), Ok(None));
    assert_eq!(decoder.decode(text(r#"42["y"]"#)), Err(DecodeError::MissingAttachments(1)));
    assert_eq!(decoder.decode(bytes()), Err(DecodeError::UnexpectedAttachment), "the half packet is gone");
}

#[test]
fn a_packet_is_bounded_with_its_attachments() {
    let announce = r#"451-["x",{"_placeholder":true,"num":0}]"#;
    let limit = announce.len() + 10;
    let attachment = |bytes: usize| Message::Binary(vec![0; bytes].into());
    let mut decoder = Decoder::new(limit);
    assert_eq!(decoder.decode(text(announce)), Ok(None));
    assert!(matches!(decoder.decode(attachment(10)), Ok(Some(_))));
    assert_eq!(decoder.decode(text(announce)), Ok(None));
    let refused = decoder.decode(attachment(11)).unwrap_err();
    assert_eq!(refused, DecodeError::TooLarge { bytes: limit + 1, limit });
    assert_eq!(refused.close(), Close::MessageTooLarge);
    decoder.set_limit(announce.len() - 1);
    assert!(matches!(decoder.decode(text(announce)), Err(DecodeError::TooLarge { .. })));
}

#[test]
fn what_clients_are_sent_is_what_the_protocol_document_says() {
    let bytes = payload(r#"[{"_placeholder":true,"num":0}]"#, &[&[1, 2, 3]]);
    for (written, expected) in [
        (event("/", "foo", &payload("[]", &[]), None).text, r#"42["foo"]"#),
        (event("/", "a\"\n", &payload("[1, 2]", &[]), None).text, r#"42["a\"\n",1, 2]"#),
        (event("/admin", "bar", &payload(" [ ] ", &[]), Some("1-2")).text, r#"42/admin,["bar","1-2"]"#),
        (event("/", "foo", &payload("[{}]", &[]), Some("1-2")).text, r#"42["foo",{},"1-2"]"#),
        (event("/admin", "baz", &bytes, None).text, r#"451-/admin,["baz",{"_placeholder":true,"num":0}]"#),
        (ack("/admin", 13, &payload(r#"["bar"]"#, &[])).text, r#"43/admin,13["bar"]"#),
        (ack("/", 15, &bytes).text, r#"461-15[{"_placeholder":true,"num":0}]"#),
        (connected("/", "wZX3oN0bSVIhsaknAAAI", None), r#"40{"sid":"wZX3oN0bSVIhsaknAAAI"}"#),
        (connected("/admin", "s", Some("p")), r#"40/admin,{"sid":"s","pid":"p"}"#),
        (connect_error("/", "Not authorized", None), r#"44{"message":"Not authorized"}"#),
        (connect_error("/a", "no", Some(r#"{"code":"x"}"#)), r#"44/a,{"message":"no","data":{"code":"x"}}"#),
        (disconnect("/"), "41"),
        (disconnect("/admin"), "41/admin,"),
    ] {
        assert_eq!(written, expected);
    }
    let messages: Vec<_> = event("/", "x", &bytes, None).into_messages().collect();
    assert_eq!(messages[1..], [Message::Binary(Bytes::from_static(&[1, 2, 3]))]);
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(any::<String>(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Payloads with any arguments and as many placeholders as attachments.
fn any_payload(arguments: Range<usize>, attachments: Range<usize>) -> impl Strategy<Value = Payload> {
    let attachments = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..8), attachments);
    (prop::collection::vec(value(), arguments), attachments, any::<bool>()).prop_map(
        |(mut args, attachments, pretty)| {
            for number in 0..attachments.len() {
                let placeholder = serde_json::json!({ "_placeholder": true, "num": number });
                args.insert(args.len() / 2, placeholder);
            }
            let args = if pretty { serde_json::to_string_pretty(&args) } else { serde_json::to_string(&args) }.unwrap();
            Payload { args: args.into(), attachments: attachments.into_iter().map(Bytes::from).collect() }
        },
    )
}

fn any_namespace() -> impl Strategy<Value = String> {
    "/|/[^\\x00-\\x1f\\x7f-\\x9f#,?]{1,20}"
}

fn any_name() -> impl Strategy<Value = String> {
    any::<String>().prop_filter("a name that events may have", |name| check_event_name(name).is_ok())
}

/// Feeds a packet to a decoder; all but its last message mean nothing by themselves.
fn read_back(packet: Packet) -> Input {
    let mut decoder = Decoder::new(LIMIT_BYTES);
    let mut read = None;
    for message in packet.into_messages() {
        assert_eq!(read, None);
        read = decoder.decode(message).unwrap();
    }
    read.unwrap()
}

proptest! {
    #[test]
    fn any_event_reads_back_as_it_was_written(
        namespace in any_namespace(),
        name in any_name(),
        payload in any_payload(0..5, 0..5),
        offset in prop::option::of("[0-9]{1,13}-[0-9]{1,9}"),
    ) {
        let read = read_back(event(&namespace, &name, &payload, offset.as_deref()));
        let Input::Event { namespace: read_namespace, name: read_name, data, ack } = read else {
            return Err(TestCaseError::fail(format!("{read:?}")));
        };
        prop_assert_eq!((&*read_namespace, &*read_name, ack), (&*namespace, &*name, None));
        prop_assert_eq!(&data.attachments, &payload.attachments);
        let inside = arguments::inside(&payload.args);
        let expected = match offset {
            Some(offset) if inside.is_empty() => format!("[\"{offset}\"]"),
            Some(offset) => format!("[{inside},\"{offset}\"]"),
            None => format!("[{inside}]"),
        };
        prop_assert_eq!(&*data.args, expected);
    }

    #[test]
    fn any_ack_reads_back_as_it_was_written(
        namespace in any_namespace(),
        id in any::<u64>(),
        data in any_payload(0..5, 0..5),
    ) {
        let read = read_back(ack(&namespace, id, &data));
        prop_assert_eq!(read, Input::Ack { namespace: namespace.into(), id, data });
    }

    #[test]
    fn the_arguments_of_an_event_are_kept_as_they_were_sent(
        payload in any_payload(1..5, 0..1),
        name in "[a-z]{1,3}:[a-z_]{1,12}",
        ack in any::<u64>(),
    ) {
        let inside = arguments::inside(&payload.args);
        let read = decode_one(&format!("42{ack}[\"{name}\",{inside}]")).unwrap();
        prop_assert_eq!(read, Some(event_of("/", &name, &payload.args, Some(ack))));
    }

    #[test]
    fn no_message_makes_the_decoder_panic(
        texts in prop::collection::vec(
            prop_oneof![
                any::<String>(),
                "4[0-6]([0-9]{1,3}-)?(/[a-z?#]{0,4},?)?[0-9]{0,22}[\\[\\]{}\",:\\\\a-z0-9 é]{0,20}",
                "45[0-3]-[0-9]{0,2}\\[\"[a-z]{0,3}\"(,\\{\"_placeholder\":true,\"num\":[0-3]\\}){0,3}\\]",
            ],
            1..4,
        ),
        bytes in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut decoder = Decoder::new(128);
        for text in texts {
            let _ = decoder.decode(Message::Text(text));
            let _ = decoder.decode(Message::Binary(bytes.clone().into()));
        }
    }
}

//! What a phone makes of each prompt in `contracts/vectors/prompts.json`.

use serde_json::Value;
use simulator::Prompt;
use simulator::phone::Identity;

#[test]
fn every_prompt_vector_gets_its_verdict() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../contracts/vectors/prompts.json"
    );
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let vectors = file["vectors"].as_array().unwrap();
    assert!(vectors.len() > 15, "{}", vectors.len());
    for vector in vectors {
        let read = |name: &str| vector[name].clone();
        let identity = Identity {
            device: serde_json::from_value(read("device")).unwrap(),
            store: serde_json::from_value(read("store")).unwrap(),
            server_key: serde_json::from_value(read("server_key")).unwrap(),
            api_base: String::new(),
        };
        let prompt: Prompt = serde_json::from_value(read("prompt")).unwrap();
        let asked = serde_json::from_value(read("push")).unwrap();
        let verdict = match prompt.check(&identity, Some(&asked)) {
            Ok(()) => "holds".to_owned(),
            Err(fault) => format!("{fault:?}").to_lowercase(),
        };
        assert_eq!(vector["verdict"], verdict.as_str(), "{}", vector["name"]);
    }
}

//! `postern plugin test`: a plugin's scenarios, in the sandbox and with the limits of a gateway, without one.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use tokio::runtime::Runtime;

use super::plugin_build::{self, BuildOptions, contract};
use super::remote::plain_json;
use super::{Failure, output};
use crate::config::{self, Mistake, Mistakes, SCENARIO_ENDING, unusable};
use crate::decision::plugin::CodeCache;
use crate::scenario::{Played, Runner, Scenario, Tested};
use crate::tenant::{NAME_FORM, Role, is_name};

mod print;

/// Where a project's scenarios are.
const DIR: &str = "tests";

/// Where a project's component and the code that is compiled of it are.
const BUILT: &str = "target/postern";

/// Compiled code that is kept for a project, in bytes.
const CACHE_BYTES: u64 = 256 << 20;

/// The longest name of a plugin, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// What to test.
#[derive(Debug, Clone, Args)]
pub struct PluginTestArgs {
    /// Directories of plugins, which are built first, or components [default: .].
    #[arg(value_name = "DIR or FILE.wasm")]
    pub plugins: Vec<PathBuf>,
    /// Run this scenario instead of all in the directory's tests/.
    #[arg(long, value_name = "FILE")]
    pub scenario: Vec<PathBuf>,
    /// What the plugin is there for [default: what it exports].
    #[arg(long, value_enum)]
    pub role: Option<RoleArg>,
    /// Print a JSON object a scenario.
    #[arg(long)]
    pub json: bool,
    /// Print all that happens, not only what was expected otherwise.
    #[arg(long)]
    pub print: bool,
}

/// A role, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum RoleArg {
    Authorizer,
    Router,
    Handler,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Role {
        match role {
            RoleArg::Authorizer => Role::Authorizer,
            RoleArg::Router => Role::Router,
            RoleArg::Handler => Role::Handler,
        }
    }
}

/// One plugin with its scenarios.
struct Project {
    tested: Tested,
    scenarios: Vec<Scenario>,
    cache: Option<PathBuf>,
}

/// Runs the scenarios and prints what came of them.
///
/// # Errors
/// [`Failure::Failed`]: something came otherwise than expected, or a plugin does not build; [`Failure::Mistakes`]: a
/// scenario is not right, or a component is not taken.
pub fn run(args: &PluginTestArgs) -> Result<(), Failure> {
    let here = [PathBuf::from(".")];
    let plugins = if args.plugins.is_empty() { &here[..] } else { &args.plugins[..] };
    if plugins.len() > 1 && !args.scenario.is_empty() {
        return Err(Failure::Usage("--scenario goes with one plugin".into()));
    }
    let mut mistakes = Vec::new();
    let mut projects = Vec::new();
    for plugin in plugins {
        projects.push(project(plugin, args, &mut mistakes)?);
    }
    if !mistakes.is_empty() {
        let count = mistakes.len();
        let text = Mistakes(mistakes).to_string();
        return Err(Failure::Mistakes(format!("{text}{count} {}", if count == 1 { "mistake" } else { "mistakes" })));
    }
    let failed = |error: std::io::Error| Failure::Failed(format!("cannot start: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(failed)?;
    let (mut run, mut failed) = (0, 0);
    for project in projects {
        let (of_it, otherwise) = play(&runtime, &project, args)?;
        run += of_it;
        failed += otherwise;
    }
    let scenarios = if run == 1 { "scenario" } else { "scenarios" };
    if failed > 0 {
        return Err(Failure::Failed(format!("{failed} of {run} {scenarios} failed")));
    }
    if !args.json {
        output::note(&format!("{run} {scenarios}, all as expected"));
    }
    Ok(())
}

/// A component of so many bytes takes seconds to compile.
const SLOW_BYTES: usize = 4 << 20;

/// How many scenarios a plugin has, and how many of them came otherwise than expected.
fn play(runtime: &Runtime, project: &Project, args: &PluginTestArgs) -> Result<(usize, usize), Failure> {
    let unusable = |error: &dyn std::fmt::Display| Failure::Mistakes(super::remote::plain(&error.to_string()));
    let cache = project.cache.clone().map(|dir| CodeCache { dir, bytes_max: CACHE_BYTES });
    let runner = Runner::new(cache).map_err(|error| unusable(&error))?;
    if !args.json && project.tested.component.len() >= SLOW_BYTES {
        output::note(&format!("{}: being compiled, if it has changed", project.tested.name));
    }
    let mut failed = 0;
    for scenario in &project.scenarios {
        let played = runtime.block_on(runner.run(&project.tested, scenario)).map_err(|error| unusable(&error))?;
        failed += usize::from(!played.passed);
        show(&played, args);
    }
    Ok((project.scenarios.len(), failed))
}

fn show(played: &Played, args: &PluginTestArgs) {
    if args.json {
        // What can be told always has a JSON form.
        output::line(&plain_json(&serde_json::to_string(played).unwrap_or_default()));
    } else {
        print::played(played, args.print);
    }
}

/// Finds a plugin's component, builds it where there are sources, and reads its scenarios.
fn project(plugin: &Path, args: &PluginTestArgs, mistakes: &mut Vec<Mistake>) -> Result<Project, Failure> {
    let is_file = plugin.extension().is_some_and(|extension| extension == "wasm");
    let (path, name) = if is_file { (plugin.to_owned(), stem(plugin)) } else { build(plugin)? };
    if !is_name(&name, NAME_BYTES_MAX) {
        let text = format!("{}: a plugin's name is 1 to {NAME_BYTES_MAX} of {NAME_FORM}, not {name:?}", path.display());
        return Err(Failure::Usage(text));
    }
    let component =
        std::fs::read(&path).map_err(|error| Failure::Usage(format!("cannot read {}: {error}", path.display())))?;
    let role = match args.role {
        Some(role) => role.into(),
        None => role(&component, &path)?,
    };
    // A component that was built lies in its project.
    let dir = match is_file {
        true => path.parent().filter(|dir| dir.ends_with(BUILT)).and_then(|dir| dir.ancestors().nth(2)),
        false => Some(plugin),
    };
    let files = if args.scenario.is_empty() { files(dir, plugin)? } else { args.scenario.clone() };
    let mut scenarios = Vec::new();
    for file in &files {
        match config::scenario(file, &name, role) {
            Ok(scenario) => scenarios.push(scenario),
            Err(found) => mistakes.extend(found.0),
        }
    }
    if let Some(twice) = twice(&scenarios) {
        mistakes.push(unusable(Path::new(&*twice.source), "another scenario of the run has the same name"));
    }
    let cache = dir.map(|dir| dir.join(BUILT).join("code-cache"));
    Ok(Project { tested: Tested { name, role, component: component.into() }, scenarios, cache })
}

fn twice(scenarios: &[Scenario]) -> Option<&Scenario> {
    let before = |index: usize| scenarios.iter().take(index);
    scenarios.iter().enumerate().find(|(index, one)| before(*index).any(|other| other.name == one.name)).map(|it| it.1)
}

/// Builds a project; answers the component and the plugin's name.
fn build(dir: &Path) -> Result<(PathBuf, String), Failure> {
    let options = BuildOptions { dirs: vec![dir.to_owned()], ..BuildOptions::default() };
    let built = plugin_build::build(&options, &mut |line| output::note(line))
        .map_err(|error| Failure::Failed(error.to_string()))?;
    let component = built.components.into_iter().next();
    let component = component.ok_or_else(|| Failure::Failed(format!("{}: nothing was built", dir.display())))?;
    let name = component.plugin_name();
    Ok((component.path, name))
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().to_ascii_lowercase().replace(['_', '.'], "-")
}

/// What a component can do for a tenant.
fn role(component: &[u8], path: &Path) -> Result<Role, Failure> {
    let shape = contract::check(component).map_err(|differences| {
        let text = format!("{} does not keep the contract ({}):", path.display(), contract::PACKAGE);
        Failure::Mistakes({
            let differences: Vec<_> = differences.iter().map(|one| super::remote::plain(one)).collect();
            format!("{text}\n  {}", differences.join("\n  "))
        })
    })?;
    Ok(match plugin_build::role_of(&shape.exports) {
        "authorizer" => Role::Authorizer,
        "router" => Role::Router,
        _ => Role::Handler,
    })
}

/// All scenarios of a project.
fn files(dir: Option<&Path>, plugin: &Path) -> Result<Vec<PathBuf>, Failure> {
    let none = || {
        let text = "write tests/NAME.scenario.toml in its project, or name one with --scenario";
        Failure::Usage(format!("{}: there is no scenario; {text}", plugin.display()))
    };
    let dir = dir.ok_or_else(none)?;
    // As one would name them.
    let dir = if dir == Path::new(".") { PathBuf::from(DIR) } else { dir.join(DIR) };
    let entries = std::fs::read_dir(&dir).map_err(|_missing| none())?;
    let is_one =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(SCENARIO_ENDING));
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_one).collect();
    files.sort();
    if files.is_empty() { Err(none()) } else { Ok(files) }
}

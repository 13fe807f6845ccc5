#include "client/command_line.h"

#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <limits>
#include <ostream>
#include <utility>

namespace portway {
namespace {

constexpr std::string_view kDescription = "Client of portwayd: forwards ports of a microVM host.";

void add_parameter(CLI::App& app, const Parameter& parameter) {
  std::string name(parameter.name);
  if (parameter.letter != 0) name = std::string{'-', parameter.letter} + "," + name;
  std::string help(parameter.help);
  if (!parameter.fallback.empty()) help += " Default: " + std::string(parameter.fallback) + ".";
  if (!parameter.environment.empty()) help += " Environment: " + std::string(parameter.environment) + ".";
  if (parameter.kind == Kind::kFlag) {
    app.add_flag(name, std::as_const(help));  // CLI11 writes a flag's value to a string that is not const
    return;
  }
  CLI::Option* option = app.add_option(name, CLI::callback_t{}, help);
  option->type_name(parameter.positional() ? "" : std::string(parameter.value));
  if ((parameter.positional() && !parameter.optional) || parameter.required) option->required();
  if (parameter.repeatable) option->expected(1, std::numeric_limits<int>::max())->allow_extra_args(false);
  if (parameter.kind == Kind::kPort) option->check(CLI::Range(1, 65535).description(""));
  if (parameter.kind == Kind::kCount)
    option->check(CLI::Range(std::int64_t{1}, parameter.most).description(""));
  if (!parameter.choices.empty()) {
    option->check(
        CLI::IsMember(std::vector<std::string>(parameter.choices.begin(), parameter.choices.end())));
  }
  if (parameter.place == Place::kPath) {
    option->check(CLI::Validator(
        [](const std::string& text) { return text.empty() ? "must not be empty" : ""; }, std::string()));
  }
}

/// The parameter's value from the command line, else from the environment, else the fallback.
void read_parameter(const CLI::App& app, const Parameter& parameter, Invocation& invocation) {
  const CLI::Option* option = app.get_option_no_throw(std::string(parameter.name));
  if (option != nullptr && option->count() > 0) {
    invocation.arguments.set(parameter.name, option->results());
    return;
  }
  const auto variable = invocation.environment.find(parameter.environment);
  if (variable != invocation.environment.end() && !variable->second.empty()) {
    invocation.arguments.set(parameter.name, {variable->second}, Origin::kEnvironment);
  } else if (!parameter.fallback.empty()) {
    invocation.arguments.set(parameter.name, {std::string(parameter.fallback)}, Origin::kFallback);
  }
}

/// Whether the next word is the option's value.
bool takes_next_word(std::string_view word) {
  const auto is_it = [&](const Parameter& each) {
    const bool has_letter = each.letter != 0 && word == std::string{'-', each.letter};
    return each.kind != Kind::kFlag && !each.positional() && (word == each.name || has_letter);
  };
  return std::ranges::any_of(global_parameters(), is_it) ||
         std::ranges::any_of(commands(),
                             [&](const auto& each) { return std::ranges::any_of(each.parameters, is_it); });
}

/// "nodes list" for a "nodes" that nothing but options follows.
std::vector<std::string> with_usual_verb(std::span<const std::string> words) {
  std::vector<std::string> all(words.begin(), words.end());
  std::vector<std::size_t> plain;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--help" || words[i] == "-h") return all;
    if (takes_next_word(words[i])) {
      ++i;
    } else if (!words[i].starts_with('-')) {
      plain.push_back(i);
    }
  }
  if (plain.size() != 1) return all;
  const auto noun = std::ranges::find(nouns(), words[plain[0]], &Noun::name);
  if (noun == nouns().end() || noun->usual_verb.empty()) return all;
  all.insert(all.begin() + static_cast<std::ptrdiff_t>(plain[0]) + 1, std::string(noun->usual_verb));
  return all;
}

/// CLI11's tree of subcommands, built from the table.
class CommandLine {
 public:
  CommandLine() {
    app_.name("portway");
    app_.require_subcommand(1);
    app_.set_version_flag("--version", "portway " PORTWAY_VERSION, "Print the client's version and exit.");
    app_.set_help_flag("-h,--help", "Print this help and exit.");
    for (const Parameter& parameter : global_parameters()) add_parameter(app_, parameter);
    for (const Command& command : commands()) add_command(command);
    app_.footer(footer());
  }

  Parsed parse(std::span<const std::string> given, const Environment& environment, Console& console) {
    const std::vector<std::string> words = with_usual_verb(given);
    std::vector<std::string> reversed(words.rbegin(), words.rend());  // CLI11 expects this order
    try {
      app_.parse(reversed);
    } catch (const CLI::ParseError& error) {
      return {.invocation = std::nullopt, .exit = report(error, console)};
    }
    Invocation invocation{.command = &chosen(), .arguments = {}, .environment = environment};
    for (const Parameter& parameter : global_parameters()) read_parameter(app_, parameter, invocation);
    const CLI::App& app = *apps_.at(invocation.command);
    for (const Parameter& parameter : invocation.command->parameters) {
      read_parameter(app, parameter, invocation);
    }
    return {.invocation = std::move(invocation), .exit = Exit::kDone};
  }

 private:
  void add_command(const Command& command) {
    CLI::App* app = &app_;
    if (!command.verb.empty()) app = &noun(command.noun);
    const std::string_view name = command.verb.empty() ? command.noun : command.verb;
    CLI::App* added = app->add_subcommand(std::string(name), std::string(command.summary));
    added->fallthrough();  // global options may appear anywhere
    if (command.hidden) added->group("");
    for (const Parameter& parameter : command.parameters) add_parameter(*added, parameter);
    apps_.emplace(&command, added);
  }

  CLI::App& noun(std::string_view name) {
    CLI::App*& added = nouns_[name];
    if (added != nullptr) return *added;
    const auto row = std::ranges::find(nouns(), name, &Noun::name);
    added = app_.add_subcommand(std::string(name), std::string(row->summary));
    return *added->require_subcommand(1)->fallthrough();
  }

  static std::string footer() {
    std::string text = "Exit codes:\n";
    for (const ExitMeaning& meaning : exit_meanings()) {
      text += fmt::format("  {}  {}\n", static_cast<int>(meaning.exit), meaning.meaning);
    }
    return text + "Examples: man portway.";
  }

  const Command& chosen() const {
    for (const auto& [command, app] : apps_) {
      if (app->parsed()) return *command;
    }
    throw std::logic_error("the parser accepted no command");
  }

  /// The innermost command that was named: the one whose help is relevant.
  const CLI::App& innermost() const {
    const CLI::App* app = &app_;
    while (!app->get_subcommands().empty()) app = app->get_subcommands().front();
    return *app;
  }

  Exit report(const CLI::ParseError& error, Console& console) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
      app_.exit(error, console.out, console.err);  // help or version
      return Exit::kDone;
    }
    const CLI::App& inner = innermost();
    std::string path;
    for (const CLI::App* app = &inner; app != nullptr; app = app->get_parent()) {
      path.insert(0, app->get_name() + " ");
    }
    std::string problem = lacks_command(inner) ? what_command(inner, path) : std::string(error.what());
    if (!problem.ends_with('.')) problem += ".";
    console.err << "portway: "
                << in_one_line({.message = std::move(problem), .remedy = "See " + path + "--help."}) << "\n";
    return Exit::kUsage;
  }

  static bool lacks_command(const CLI::App& app) {
    return app.get_require_subcommand_min() > 0 && app.get_subcommands().empty();
  }

  /// CLI11 reports only that a subcommand is required; this lists the commands.
  std::string what_command(const CLI::App& app, const std::string& path) const {
    std::vector<std::string> names;
    for (const CLI::App* each : app.get_subcommands(nullptr)) {
      if (!each->get_group().empty()) names.push_back(each->get_name());
    }
    const std::vector<std::string> unknown = app_.remaining(true);
    if (!unknown.empty() && unknown.front().starts_with('-'))
      return fmt::format("There is no option {}.", unknown.front());
    const std::string problem = unknown.empty()
                                    ? "Give a command"
                                    : fmt::format("There is no command \"{}{}\"", path, unknown.front());
    return fmt::format("{}: {}.", problem, fmt::join(names, ", "));
  }

  CLI::App app_{std::string(kDescription)};
  std::map<const Command*, const CLI::App*> apps_;
  std::map<std::string_view, CLI::App*> nouns_;
};

Exit run(const Invocation& invocation, Console& console) {
  const Outcome<void> outcome = invocation.command->run(invocation, console);
  if (outcome) return Exit::kDone;
  const Failure& failure = outcome.error();
  if (invocation.wants_data() && !failure.problem.empty()) {
    console.err << failure.problem << "\n";
  } else if (!failure.message.empty()) {
    console.err << "portway: " << in_one_line(failure) << "\n";
  }
  return failure.exit;
}

}  // namespace

Parsed parse_command_line(std::span<const std::string> words, const Environment& environment,
                          Console& console) {
  return CommandLine().parse(words, environment, console);
}

int run_client(std::span<const std::string> words, const Environment& environment, Console& console) {
  const Parsed parsed = parse_command_line(words, environment, console);
  const Exit exit = parsed.invocation ? run(*parsed.invocation, console) : parsed.exit;
  if (!console.out.flush()) {
    console.err << "portway: standard output cannot be written; check whether the disk is full\n";
    return static_cast<int>(Exit::kRefused);
  }
  return static_cast<int>(exit);
}

}  // namespace portway

#include "client/completion.h"

#include <unistd.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <cctype>
#include <ostream>
#include <set>
#include <sstream>

#include "client/contexts.h"
#include "client/output.h"
#include "client/request.h"
#include "client/server_address.h"

namespace portway {
namespace {

std::string joined(const std::vector<std::string_view>& words, std::string_view separator = " ") {
  std::string out;
  for (const std::string_view word : words) {
    if (!out.empty()) out += separator;
    out += word;
  }
  return out;
}

std::string letter_of(const Parameter& option) {
  return std::string{'-', option.letter};
}

std::vector<const Command*> visible_commands() {
  std::vector<const Command*> visible;
  for (const Command& command : commands()) {
    if (!command.hidden) visible.push_back(&command);
  }
  return visible;
}

/// Every option of every command, each name once.
std::vector<const Parameter*> all_options() {
  std::vector<const Parameter*> options;
  std::set<std::string_view> names;
  const auto add = [&](const Parameter& parameter) {
    if (!parameter.positional() && names.insert(parameter.name).second) options.push_back(&parameter);
  };
  for (const Parameter& parameter : global_parameters()) add(parameter);
  for (const Command* command : visible_commands()) {
    for (const Parameter& parameter : command->parameters) add(parameter);
  }
  return options;
}

/// Names of options that a value follows, for a shell's `case`.
std::string option_names(std::string_view separator) {
  std::string names;
  for (const Parameter* option : all_options()) {
    if (option->kind == Kind::kFlag) continue;
    if (!names.empty()) names += separator;
    names += option->name;
    if (option->letter != 0) names += std::string(separator) + letter_of(*option);
  }
  return names;
}

/// Candidates for the first word: nouns, and commands of one word.
std::vector<Noun> first_words() {
  std::vector<Noun> words(nouns().begin(), nouns().end());
  for (const Command* command : visible_commands()) {
    if (command->verb.empty()) words.push_back({command->noun, command->summary});
  }
  return words;
}

std::vector<Noun> verbs_of(std::string_view noun) {
  std::vector<Noun> verbs;
  for (const Command* command : visible_commands()) {
    if (command->noun == noun) verbs.push_back({command->verb, command->summary});
  }
  return verbs;
}

/// The kind of ids that run_complete_ids() prints for the parameter; empty: none.
std::string_view ids_for(const Parameter& parameter) {
  if (parameter.name == "INSTANCE") return "instances";
  if (parameter.name == "FORWARD") return "forwards";
  if (parameter.name == "NODE" || parameter.name == "--node") return "nodes";
  if (parameter.name == "CONTEXT" || parameter.name == "--context") return "contexts";
  return parameter.name == "KEY" ? "keys" : "";
}

std::string names_of(const std::vector<Noun>& words) {
  std::string out;
  for (const Noun& word : words) out += (out.empty() ? "" : " ") + std::string(word.name);
  return out;
}

// --- bash

std::string bash_values() {
  std::string cases;
  for (const Parameter* option : all_options()) {
    if (option->kind == Kind::kFlag) continue;
    const std::string names =
        std::string(option->name) + (option->letter != 0 ? " | " + letter_of(*option) : "");
    if (!option->choices.empty()) {
      cases += "    " + names + ") COMPREPLY=($(compgen -W \"" + joined(option->choices) +
               "\" -- \"$current\")); return ;;\n";
    } else if (const std::string_view ids = ids_for(*option); !ids.empty()) {
      cases += "    " + names + ") COMPREPLY=($(compgen -W \"$(portway complete-ids " + std::string(ids) +
               " - 2>/dev/null)\" -- \"$current\")); return ;;\n";
    } else if (option->kind == Kind::kFile) {
      cases += "    " + names + ") COMPREPLY=($(compgen -f -- \"$current\")); return ;;\n";
    } else {
      cases += "    " + names + ") return ;;\n";
    }
  }
  return cases;
}

std::string bash_command(const Command& command) {
  std::vector<std::string_view> words;
  std::vector<std::string_view> ids;
  bool file = false;
  for (const Parameter& parameter : command.parameters) {
    if (const std::string_view kind = ids_for(parameter); !kind.empty()) ids.push_back(kind);
    if (!parameter.positional()) words.push_back(parameter.name);
    if (parameter.positional()) words.insert(words.end(), parameter.choices.begin(), parameter.choices.end());
    file = file || (parameter.positional() && parameter.kind == Kind::kFile);
  }
  // A command of one word is followed by its arguments, not by a verb.
  const std::string pattern = '"' + std::string(command.noun) + " " +
                              (command.verb.empty() ? "\"*" : std::string(command.verb) + '"');
  return "    " + pattern + ") words=\"" + joined(words) + '"' +
         (ids.empty() ? "" : "; ids=(" + joined(ids) + ")") +
         (file ? "; COMPREPLY=($(compgen -f -- \"$current\"))" : "") + " ;;\n";
}

std::string bash_script() {
  std::string out =
      "# bash completion for portway\n"
      "_portway() {\n"
      "  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} noun= verb= words= i\n"
      "  local -a ids=() given=()\n"
      "  COMPREPLY=()\n"
      "  case $previous in\n" +
      bash_values() +
      "  esac\n"
      "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
      "    case ${COMP_WORDS[i]} in\n"
      "      " +
      option_names(" | ") +
      ") ((i++)) ;;\n"
      "      -*) ;;\n"
      "      *) if [[ -z $noun ]]; then noun=${COMP_WORDS[i]}; elif [[ -z $verb ]]; then "
      "verb=${COMP_WORDS[i]}; else given+=(\"${COMP_WORDS[i]}\"); fi ;;\n"
      "    esac\n"
      "  done\n"
      "  case \"$noun $verb\" in\n"
      "    \" \") words=\"" +
      names_of(first_words()) + "\" ;;\n";
  for (const Noun& noun : nouns()) {
    out += "    \"" + std::string(noun.name) + " \") words=\"" + names_of(verbs_of(noun.name)) + "\" ;;\n";
  }
  for (const Command* command : visible_commands()) out += bash_command(*command);
  std::vector<std::string_view> globals;
  for (const Parameter& parameter : global_parameters()) globals.push_back(parameter.name);
  return out +
         "  esac\n"
         "  local kind=${ids[${#given[@]}]}\n"
         "  [[ $current == -* || -z $kind ]] || words+=\" $(portway complete-ids \"$kind\" "
         "\"${given[0]:--}\" 2>/dev/null)\"\n"
         "  [[ $current != -* ]] || words+=\" " +
         joined(globals) +
         " --help\"\n"
         "  COMPREPLY+=($(compgen -W \"$words\" -- \"$current\"))\n"
         "}\n"
         "complete -F _portway portway\n";
}

// --- zsh

/// Escapes text for a specification of _arguments or _describe, in single quotes.
std::string zsh_escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      if (c == ':' || c == '[' || c == ']' || c == '\\') out += '\\';
      out += c;
    }
  }
  return out;
}

std::string zsh_action(const Parameter& parameter) {
  if (!parameter.choices.empty()) return "(" + joined(parameter.choices) + ")";
  if (parameter.kind == Kind::kFile) return "_files";
  if (const std::string_view ids = ids_for(parameter); !ids.empty()) {
    return "{_portway_ids " + std::string(ids) + "}";
  }
  // "()", not an empty action: for that _arguments would show a message, and then it would not insert options
  // either.
  return parameter.positional() ? "()" : "";
}

std::string zsh_argument(const Parameter& parameter, int position) {
  if (parameter.positional()) {
    return "'" + std::to_string(position) + (parameter.optional ? "::" : ":") + zsh_escaped(parameter.name) +
           ":" + zsh_action(parameter) + "'";
  }
  if (parameter.kind == Kind::kFlag) {
    return "'" + std::string(parameter.name) + "[" + zsh_escaped(parameter.help) + "]'";
  }
  const std::string rest = "[" + zsh_escaped(parameter.help) + "]:" + zsh_escaped(parameter.value) + ":" +
                           zsh_action(parameter) + "'";
  const std::string repeat = parameter.repeatable ? "*" : "";
  std::string out = "'" + repeat + std::string(parameter.name) + "=" + rest;
  if (parameter.letter != 0) out += " '" + letter_of(parameter) + "+" + rest;
  return out;
}

std::string zsh_function(const Command& command) {
  return "_portway_" + std::string(command.noun) + (command.verb.empty() ? "" : "_") +
         std::string(command.verb);
}

std::string zsh_describe(const std::vector<Noun>& words) {
  std::string out = "      local -a words=(\n";
  for (const Noun& word : words) {
    out += "        '" + zsh_escaped(word.name) + ":" + zsh_escaped(word.summary) + "'\n";
  }
  return out + "      )\n      _describe -t commands command words ;;\n";
}

/// A function that completes one word of `words` and hands what follows to PREFIX_WORD.
std::string zsh_chooser(const std::string& name, const std::vector<Noun>& words) {
  return name +
         "() {\n"
         "  local context state state_descr line\n"
         "  typeset -A opt_args\n"
         "  _arguments -C $_portway_options '1: :->word' '*:: :->rest'\n"
         "  case $state in\n"
         "    word)\n" +
         zsh_describe(words) + "    rest) (( $+functions[" + name + "_$line[1]] )) && " + name +
         "_$line[1] ;;\n"
         "  esac\n"
         "}\n";
}

std::string zsh_script() {
  std::string out =
      "#compdef portway\n"
      "_portway_ids() {\n"
      "  local -a ids=(${(f)\"$(portway complete-ids $1 ${${(M)words[2,CURRENT-1]:#[^-]*}[1]:--} "
      "2>/dev/null)\"})\n"
      "  compadd -a ids\n"
      "}\n"
      "typeset -ga _portway_options=(\n";
  for (const Parameter& parameter : global_parameters()) out += "  " + zsh_argument(parameter, 0) + "\n";
  out += "  '--help[Print help and exit.]'\n)\n";
  for (const Command* command : visible_commands()) {
    out += zsh_function(*command) + "() {\n  _arguments $_portway_options";
    int position = 0;
    for (const Parameter& parameter : command->parameters) {
      position += parameter.positional() ? 1 : 0;
      out += " \\\n    " + zsh_argument(parameter, position);
    }
    out += "\n}\n";
  }
  for (const Noun& noun : nouns())
    out += zsh_chooser("_portway_" + std::string(noun.name), verbs_of(noun.name));
  return out + zsh_chooser("_portway", first_words()) +
         "# Autoloaded from fpath, this file completes; sourced, it registers the completion.\n"
         "if [[ $funcstack[1] == _portway ]]; then _portway \"$@\"; else compdef _portway portway; fi\n";
}

// --- fish

std::string fish_quoted(std::string_view text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'' || c == '\\') out += '\\';
    out += c;
  }
  return out + "'";
}

std::string fish_option(const Parameter& option, const std::string& condition) {
  std::string line = "complete -c portway" + condition + " -l " + std::string(option.name.substr(2));
  if (option.letter != 0) line += std::string(" -s ") + option.letter;
  if (option.kind != Kind::kFlag) line += option.kind == Kind::kFile ? " -r -F" : " -x";
  if (!option.choices.empty()) line += " -a " + fish_quoted(joined(option.choices));
  if (const std::string_view ids = ids_for(option); !ids.empty()) {
    line += " -a " + fish_quoted("(__portway_ids " + std::string(ids) + ")");
  }
  return line + " -d " + fish_quoted(option.help) + "\n";
}

std::string fish_words(const std::vector<Noun>& words, std::string_view after) {
  std::string out;
  for (const Noun& word : words) {
    out += "complete -c portway -n " + fish_quoted("__portway_at " + std::string(after)) + " -a " +
           std::string(word.name) + " -d " + fish_quoted(word.summary) + "\n";
  }
  return out;
}

std::string fish_command(const Command& command) {
  std::string out;
  int position = 0;  // of an id, after the command
  for (const Parameter& parameter : command.parameters) {
    if (!parameter.positional()) {
      out += fish_option(parameter, " -n " + fish_quoted("__portway_in " + command.full_name()));
      continue;
    }
    const std::string at = "complete -c portway -n " + fish_quoted("__portway_at " + command.full_name());
    if (!parameter.choices.empty()) out += at + " -a " + fish_quoted(joined(parameter.choices)) + "\n";
    if (parameter.kind == Kind::kFile) out += at + " -F\n";
    const std::string_view ids = ids_for(parameter);
    if (ids.empty()) continue;
    out += "complete -c portway -n " +
           fish_quoted("__portway_after " + std::to_string(position++) + " " + command.full_name()) + " -a " +
           fish_quoted("(__portway_ids " + std::string(ids) + ")") + "\n";
  }
  return out;
}

std::string fish_script() {
  std::string out =
      "# fish completion for portway\n"
      "function __portway_words --description 'The words so far, without options and their values'\n"
      "    set -l skip 0\n"
      "    for token in (commandline -opc)[2..-1]\n"
      "        if test $skip = 1\n"
      "            set skip 0\n"
      "            continue\n"
      "        end\n"
      "        switch $token\n"
      "            case " +
      option_names(" ") +
      "\n"
      "                set skip 1\n"
      "            case '-*'\n"
      "            case '*'\n"
      "                echo $token\n"
      "        end\n"
      "    end\n"
      "end\n"
      "function __portway_at --description 'Exactly these words so far'\n"
      "    set -l words (__portway_words)\n"
      "    test \"$words\" = \"$argv\"\n"
      "end\n"
      "function __portway_in --description 'Starts with these words'\n"
      "    set -l words (__portway_words)\n"
      "    set -l count (count $argv)\n"
      "    test \"$words[1..$count]\" = \"$argv\"\n"
      "end\n"
      "function __portway_after --description 'These words, and exactly this many others, so far'\n"
      "    set -l words (__portway_words)\n"
      "    set -l first (math (count $argv) - 1)\n"
      "    test (count $words) = (math $first + $argv[1]); and test \"$words[1..$first]\" = "
      "\"$argv[2..-1]\"\n"
      "end\n"
      "function __portway_ids\n"
      "    set -l words (__portway_words)\n"
      "    set -l instance -\n"
      "    test (count $words) -gt 2; and set instance $words[3]\n"
      "    portway complete-ids $argv[1] $instance 2>/dev/null\n"
      "end\n"
      "complete -c portway -f\n";
  for (const Parameter& parameter : global_parameters()) out += fish_option(parameter, "");
  out += fish_words(first_words(), "");
  for (const Noun& noun : nouns()) out += fish_words(verbs_of(noun.name), noun.name);
  for (const Command* command : visible_commands()) out += fish_command(*command);
  return out;
}

}  // namespace

std::string completion_script(std::string_view shell) {
  if (shell == "bash") return bash_script();
  return shell == "zsh" ? zsh_script() : fish_script();
}

namespace {

Outcome<void> complete_contexts(const Invocation& invocation, Console& console) {
  const auto contexts = read_contexts(invocation.environment);
  if (!contexts) return {};
  for (const ServerContext& context : contexts->all) console.out << context.name << "\n";
  return {};
}

}  // namespace

Outcome<void> run_complete_ids(const Invocation& invocation, Console& console) {
  constexpr unsigned kSecondsMax = 3;  // an upper bound for any server; SIGALRM ends the process
  constexpr std::size_t kIdsMax = 200;
  const std::string& kind = invocation.arguments.text("KIND");
  if (kind == "contexts") return complete_contexts(invocation, console);
  const std::string& instance = invocation.arguments.text("INSTANCE");
  Invocation quick = invocation;
  quick.arguments.set("--timeout", {"1"});
  std::ostringstream discarded;
  Console quiet{.out = console.out, .err = discarded};
  const auto client = make_client(quick, quiet);
  if (!client) return {};
  const bool of_instance = kind == "forwards";
  const std::string path = of_instance ? "/instances/" + percent_encoded(instance) + "/port-forwards"
                                       : (kind == "keys" ? "/api-keys" : "/" + kind);
  const std::string list_name = of_instance ? "port_forwards" : kind == "keys" ? "api_keys" : kind;
  ::alarm(kSecondsMax);
  const auto answer = ask(*client, {.method = "GET", .target = path + "?limit=" + std::to_string(kIdsMax)});
  ::alarm(0);
  const boost::json::value* list = answer ? answer->if_contains(list_name) : nullptr;
  if (list == nullptr || !list->is_array()) return {};
  for (const boost::json::value& item : list->get_array()) {
    const std::string id = item.is_object() ? text_of(item.get_object(), "id") : "";
    // A shell would expand other characters.
    const bool plain = !id.empty() && std::ranges::all_of(id, [](unsigned char c) {
      return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
    });
    if (plain) console.out << id << "\n";
  }
  return {};
}

Outcome<void> run_completion(const Invocation& invocation, Console& console) {
  console.out << completion_script(invocation.arguments.text("SHELL"));
  return {};
}

}  // namespace portway

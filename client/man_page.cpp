#include "client/man_page.h"

#include <array>
#include <ostream>

#include "config/config.h"

namespace portway {
namespace {

/// Escapes text for troff: backslashes, and hyphens so that they can be copied from the page.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else {
      out += c;
    }
  }
  return out;
}

/// A line of text. A leading period or apostrophe is escaped: troff would read it as a request.
std::string line(std::string_view text) {
  const bool request = text.starts_with('.') || text.starts_with('\'');
  return (request ? "\\&" : "") + escaped(text) + "\n";
}

std::string bold(std::string_view text) {
  return "\\fB" + escaped(text) + "\\fR";
}

std::string italic(std::string_view text) {
  return "\\fI" + escaped(text) + "\\fR";
}

std::string option_entry(const Parameter& option) {
  std::string out = ".TP\n";
  if (option.letter != 0) out += bold(std::string{'-', option.letter}) + ", ";
  out += bold(option.name) + (option.kind == Kind::kFlag ? "" : " " + italic(option.value)) + "\n" +
         line(option.help);
  if (!option.choices.empty()) {
    out += "One of";
    for (const std::string_view choice : option.choices) {
      out += " " + bold(choice) + (choice == option.choices.back() ? ".\n" : ",");
    }
  }
  if (!option.fallback.empty()) out += "Default: " + bold(option.fallback) + ".\n";
  if (!option.environment.empty()) out += "Environment: " + bold(option.environment) + ".\n";
  return out;
}

std::string command_entry(const Command& command) {
  std::string out = ".SS \"portway " + command.full_name();
  for (const Parameter& parameter : command.parameters) {
    if (!parameter.positional()) continue;
    const std::string name(parameter.name);
    out += parameter.optional ? " [" + name + "]" : " " + name;
  }
  out += "\"\n" + line(command.summary);
  for (const Parameter& parameter : command.parameters) {
    if (!parameter.positional()) {
      out += option_entry(parameter);
    } else {
      out += ".TP\n" + italic(parameter.name) + "\n" + line(parameter.help);
    }
  }
  return out;
}

std::string exit_entries() {
  std::string out;
  for (const ExitMeaning& meaning : exit_meanings()) {
    out += ".TP\n" + bold(std::to_string(static_cast<int>(meaning.exit))) + "\n" + line(meaning.meaning);
  }
  return out;
}

struct Example {
  std::string_view meaning;
  std::string_view command;
};
constexpr auto kExamples = std::to_array<Example>({
    {"The node's orchestrator reports that a virtual machine is running:",
     "portway --key-file /etc/portway/admin.key instances put vm-1 \\\n"
     "    --guest-address 198.18.0.2 --tap tap0 --owner alice"},
    {"It creates a key for the machine's owner:",
     "(umask 077; portway --key-file /etc/portway/admin.key keys create --owner alice > alice.key)"},
    {"The owner exposes a web server:",
     "export PORTWAY_API_KEY_FILE=alice.key\nportway forwards create vm-1 3000 --label dev-server"},
    {"The owner looks on while things change:", "portway forwards list vm-1 --wide --watch"},
    {"The host ports of all forwards, for a script:",
     "portway forwards list vm-1 -o json | jq '.port_forwards[].host_port'"},
});

std::string examples() {
  std::string out;
  for (const Example& example : kExamples) {
    out += (out.empty() ? "" : ".PP\n") + line(example.meaning) + ".PP\n.RS 4\n.nf\n" +
           escaped(example.command) + "\n.fi\n.RE\n";
  }
  return out;
}

std::string contexts_section() {
  return ".SH CONTEXTS\n"
         "A context is a server with a name, its key and its certificates. Contexts are in the file\n"
         ".IR $XDG_CONFIG_HOME/portway/contexts.toml\n(by default\n.IR ~/.config/portway/contexts.toml ).\n"
         "Its paths are relative to the file, or begin with\n.IR ~/ .\n"
         ".PP\n.RS 4\n.nf\n" +
         escaped(
             "current = \"compute-1\"\n\n[contexts.compute-1]\nserver = \"https://compute-1.example\"\n"
             "key_file = \"compute-1.key\"\nca = \"ca.pem\"\n\n[contexts.local]\n"
             "server = \"unix:/run/portway/api.sock\"\n") +
         ".fi\n.RE\n.PP\nA context can also have\n.I cert\nand\n.IR cert_key .\n"
         "Options come first, then the context that\n.B \\-\\-context\nnames, then environment variables, "
         "then the context of\n"
         ".B PORTWAY_CONTEXT\nor the current one, then defaults.\n"
         "If the server is given by\n.B \\-\\-server\nor\n.BR PORTWAY_SERVER ,\n"
         "a context counts only if\n.B \\-\\-context\nnames it: its key is not for another server.\n"
         "The client warns if others can read a key.\n";
}

}  // namespace

std::string client_man_page() {
  std::string out =
      ".TH PORTWAY 1 \"\" \"Portway " PORTWAY_VERSION
      "\" \"Portway\"\n"
      ".SH NAME\nportway \\- forward ports of microVMs\n"
      ".SH SYNOPSIS\n\\fBportway\\fR [\\fIOPTION\\fR]... \\fINOUN\\fR \\fIVERB\\fR [\\fIARGUMENT\\fR]...\n"
      ".SH DESCRIPTION\n"
      "The client of the REST API of\n.BR portwayd (8).\nIt sends requests to the server given by\n"
      ".BR \\-\\-server ,\nwith the API key from a file or the environment.\n"
      "Options may appear before or after the command.\n"
      ".PP\nOutput is a table, or with\n.B \"\\-o json\"\nor\n.B \"\\-o yaml\"\nthe API's own answer, in "
      "which\n"
      ".I etag\nis added.\nMembers can be added to it; none goes without a deprecation. Tables are for "
      "people and can change.\n"
      "Lists are complete: the client follows the API's pages.\n"
      "What follows something, such as\n.B \\-\\-watch\nand\n.BR \"portway events\" ,\nruns until it is "
      "interrupted, and then exits with 0.\n"
      ".PP\nAn error is one line on standard error: what happened, what to do about it, and in parentheses "
      "the\n"
      "code, the status and the request's id if the server refused. The exit code says of what kind it is.\n"
      ".SH OPTIONS\n";
  for (const Parameter& parameter : global_parameters()) out += option_entry(parameter);
  out += ".TP\n\\fB\\-h\\fR, \\fB\\-\\-help\\fR\nPrint help, for the command if one is named, and exit.\n";
  out += ".TP\n\\fB\\-\\-version\\fR\nPrint the client's version and exit.\n.SH COMMANDS\n";
  for (const Command& command : commands()) {
    if (!command.hidden) out += command_entry(command);
  }
  return out + contexts_section() +
         ".SH ENVIRONMENT\n.TP\n\\fBPORTWAY_API_KEY\\fR\nThe API key, used if no file is named.\n"
         ".TP\n\\fBPORTWAY_CONTEXTS\\fR\nThe file of the contexts.\n"
         ".PP\nVariables that can replace an option are listed with that option.\n"
         ".SH \"EXIT STATUS\"\n" +
         exit_entries() + ".SH EXAMPLES\n" + examples() +
         ".SH \"SEE ALSO\"\n.BR portwayd (8),\n.BR portway.toml (5)\n";
}

std::string config_man_page() {
  std::string out = ".TH PORTWAY.TOML 5 \"\" \"Portway " PORTWAY_VERSION
                    "\" \"Portway\"\n"
                    ".SH NAME\nportway.toml \\- configuration of portwayd\n"
                    ".SH DESCRIPTION\n"
                    "The TOML file that\n.B portwayd \\-\\-config\nreads. Check it with\n"
                    ".BR \"portway config check\" .\n"
                    ".SH KEYS\n.nf\n";
  const std::string reference = config_reference();
  for (std::size_t start = 0; start < reference.size();) {
    const std::size_t end = reference.find('\n', start);
    out += line(std::string_view(reference).substr(start, end - start));
    start = end + 1;
  }
  return out + ".fi\n.SH \"SEE ALSO\"\n.BR portwayd (8),\n.BR portway (1)\n";
}

Outcome<void> run_man_page(const Invocation& invocation, Console& console) {
  console.out << (invocation.arguments.text("PAGE") == "portway.1" ? client_man_page() : config_man_page());
  return {};
}

}  // namespace portway

#include "client/contexts.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <toml++/toml.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "base/endpoint.h"
#include "base/fd.h"
#include "client/server_address.h"

namespace portway {
namespace {

constexpr std::size_t kContextsFileMax = 1 << 20;
constexpr std::size_t kContextNameMax = 64;
constexpr std::string_view kCurrent = "current";
constexpr std::string_view kContexts = "contexts";

/// The keys of a context.
struct ContextKey {
  std::string_view name;
  std::string ServerContext::*member;
  bool is_file;
};
constexpr auto kContextKeys = std::to_array<ContextKey>({{"server", &ServerContext::server, false},
                                                         {"key_file", &ServerContext::key_file, true},
                                                         {"ca", &ServerContext::ca, true},
                                                         {"cert", &ServerContext::cert, true},
                                                         {"cert_key", &ServerContext::cert_key, true}});

std::string value_in(const Environment& environment, std::string_view name) {
  const auto found = environment.find(name);
  return found == environment.end() ? std::string() : found->second;
}

std::string path_of_contexts(const Environment& environment) {
  if (std::string path = value_in(environment, "PORTWAY_CONTEXTS"); !path.empty()) return path;
  // A relative path is to be ignored (XDG Base Directory Specification).
  const std::string config = value_in(environment, "XDG_CONFIG_HOME");
  if (config.starts_with('/')) return config + "/portway/contexts.toml";
  const std::string home = value_in(environment, "HOME");
  return home.empty() ? std::string() : home + "/.config/portway/contexts.toml";
}

bool is_context_name(std::string_view name) {
  return !name.empty() && name.size() <= kContextNameMax && std::ranges::all_of(name, [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
  });
}

Failure unreadable(const std::string& path, int error) {
  return {Exit::kUsage, path + ": " + std::system_category().message(error) + ".",
          "Make it readable, or name another file in PORTWAY_CONTEXTS."};
}

/// The text of the file; nothing if there is none.
Outcome<std::optional<std::string>> read_text(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) return std::optional<std::string>();
    return unreadable(path, errno);
  }
  if ((status.st_mode & S_IWOTH) != 0) {
    return Failure{Exit::kUsage,
                   path + ": everybody can write this file, and so have your key sent elsewhere.",
                   "chmod o-w " + path};
  }
  std::string text(kContextsFileMax + 1, '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.is_open() || file.bad()) return unreadable(path, errno);
  text.resize(static_cast<std::size_t>(file.gcount()));
  if (text.size() > kContextsFileMax) return Failure{Exit::kUsage, path + ": it has more than 1 MiB."};
  return std::optional(std::move(text));
}

/// Reads one file.
class ContextsReader {
 public:
  ContextsReader(std::string path, const Environment& environment)
      : environment_(environment), contexts_{.path = std::move(path)} {}

  Outcome<Contexts> read(std::string_view text) {
    auto parsed = parse(text);
    if (!parsed) return parsed.error();
    for (const auto& [key, node] : *parsed) {
      if (key.str() == kCurrent || key.str() == kContexts) continue;
      return wrong(node, fmt::format("\"{}\" is not known", key.str()),
                   "At the top there are current and [contexts.NAME].");
    }
    if (const toml::node* all = parsed->get(kContexts)) {
      if (!all->is_table()) return wrong(*all, "\"contexts\" must be tables", "Write [contexts.NAME].");
      for (const auto& [name, node] : *all->as_table()) {
        if (auto added = add(name.str(), node); !added) return added.error();
      }
    }
    if (const toml::node* current = parsed->get(kCurrent)) {
      if (auto set = set_current(*current); !set) return set.error();
    }
    return std::move(contexts_);
  }

 private:
  Outcome<toml::table> parse(std::string_view text) const {
    try {
      return toml::parse(text);
    } catch (const toml::parse_error& error) {
      return Failure{
          Exit::kUsage,
          fmt::format("{}:{}: not TOML: {}.", contexts_.path, error.source().begin.line, error.description()),
          "portway(1) shows such a file."};
    }
  }

  Failure wrong(const toml::node& node, const std::string& what, std::string remedy) const {
    return {Exit::kUsage, fmt::format("{}:{}: {}.", contexts_.path, node.source().begin.line, what),
            std::move(remedy)};
  }

  Outcome<void> add(std::string_view name, const toml::node& node) {
    const toml::table* table = node.as_table();
    if (table == nullptr) return wrong(node, in_quotes(name) + " is not a table", "Write [contexts.NAME].");
    if (!is_context_name(name)) {
      return wrong(node, in_quotes(name) + " cannot be the name of a context",
                   "A name has 1-64 letters, digits, dots, dashes and underscores.");
    }
    ServerContext context{.name = std::string(name)};
    for (const auto& [key, value] : *table) {
      if (auto set = set_key(context, key.str(), value); !set) return set;
    }
    if (context.server.empty()) {
      return wrong(node, fmt::format("the context {} has no server", name),
                   "Add server = \"https://HOST\", \"http://HOST:PORT\" or \"unix:/PATH\".");
    }
    contexts_.all.push_back(std::move(context));
    return {};
  }

  Outcome<void> set_key(ServerContext& context, std::string_view name, const toml::node& value) const {
    const auto key = std::ranges::find(kContextKeys, name, &ContextKey::name);
    if (key == kContextKeys.end()) {
      return wrong(value, fmt::format("\"{}\" is not known", name),
                   "A context has server, key_file, ca, cert and cert_key.");
    }
    const auto text = value.value_exact<std::string>();
    if (!text || text->empty())
      return wrong(value, fmt::format("{} must be a text", name), "Put it in quotation marks.");
    context.*key->member = key->is_file ? absolute(*text) : *text;
    if (name != "server") return {};
    const auto address = parse_server_address(*text);
    if (address) return {};
    return wrong(value, in_quotes(*text) + " is not a server's address",
                 "Give http://HOST:PORT, https://HOST[:PORT] or unix:/PATH.");
  }

  Outcome<void> set_current(const toml::node& node) {
    const auto name = node.value_exact<std::string>();
    if (!name) return wrong(node, "current must be the name of a context", "Put it in quotation marks.");
    const auto found = find_context(contexts_, *name);
    if (!found)
      return wrong(node, fmt::format("there is no context {}", in_quotes(*name)), found.error().remedy);
    contexts_.current = *name;
    return {};
  }

  /// Relative to the file, or with "~/" to the user's home.
  std::string absolute(const std::string& file) const {
    const std::string home = value_in(environment_, "HOME");
    if (file.starts_with("~/") && !home.empty()) return home + file.substr(1);
    return std::filesystem::path(contexts_.path).parent_path() / file;
  }

  const Environment& environment_;
  Contexts contexts_;
};

/// The file's text with another `current`. It has been read without an error.
std::string with_current(const std::string& text, const std::string& name) {
  const std::string quoted = '"' + name + '"';
  const toml::table parsed = toml::parse(text);
  const toml::node* current = parsed.get(kCurrent);
  if (current == nullptr) return "current = " + quoted + "\n" + text;
  // The value is the name of a context, and so in one line of ASCII up to there.
  const toml::source_region& place = current->source();
  std::size_t line = 0;
  for (toml::source_index i = 1; i < place.begin.line; ++i) line = text.find('\n', line) + 1;
  std::string changed = text;
  return changed.replace(line + place.begin.column - 1, place.end.column - place.begin.column, quoted);
}

/// Replaces the file in one step; a link keeps pointing to it.
Outcome<void> replace_file(const std::string& path, const std::string& text) {
  const auto failed = [&] {
    return Failure{Exit::kUsage, path + " cannot be written: " + std::system_category().message(errno) + ".",
                   "Check the permissions of its folder."};
  };
  std::error_code ignored;
  const std::string target = std::filesystem::canonical(path, ignored);
  struct stat status {};
  std::string temporary = target + ".XXXXXX";
  if (::stat(target.c_str(), &status) != 0) return failed();
  const Fd file(::mkstemp(temporary.data()));
  if (!file) return failed();
  const bool written = ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
                       ::fchmod(file.get(), status.st_mode & 07777) == 0 && ::fsync(file.get()) == 0 &&
                       ::rename(temporary.c_str(), target.c_str()) == 0;
  if (written) return {};
  const auto failure = failed();
  ::unlink(temporary.c_str());
  return failure;
}

}  // namespace

Outcome<Contexts> read_contexts(const Environment& environment) {
  const std::string path = path_of_contexts(environment);
  if (path.empty()) return Contexts{};
  const auto text = read_text(path);
  if (!text) return text.error();
  return ContextsReader(path, environment).read(text->value_or(""));
}

Outcome<ServerContext> find_context(const Contexts& contexts, const std::string& name) {
  const auto found = std::ranges::find(contexts.all, name, &ServerContext::name);
  if (found != contexts.all.end()) return *found;
  std::vector<std::string_view> names;
  for (const ServerContext& context : contexts.all) names.push_back(context.name);
  return Failure{Exit::kUsage, fmt::format("There is no context {}.", in_quotes(name)),
                 names.empty()
                     ? fmt::format("Write [contexts.{}] with a server into {}; portway(1) shows such a file.",
                                   is_context_name(name) ? name : "NAME",
                                   contexts.path.empty() ? "the file of PORTWAY_CONTEXTS" : contexts.path)
                     : fmt::format("{} has {}.", contexts.path, fmt::join(names, ", "))};
}

Outcome<ServerContext> use_context(const Environment& environment, const std::string& name) {
  const auto contexts = read_contexts(environment);
  if (!contexts) return contexts.error();
  auto found = find_context(*contexts, name);
  if (!found) return found.error();
  const auto text = read_text(contexts->path);
  if (!text) return text.error();
  if (auto replaced = replace_file(contexts->path, with_current(text->value_or(""), name)); !replaced) {
    return replaced.error();
  }
  return found;
}

Outcome<std::optional<ServerContext>> context_in_use(const Invocation& invocation) {
  const auto contexts = read_contexts(invocation.environment);
  if (!contexts) return contexts.error();
  const bool named = invocation.arguments.given("--context");
  const std::string name = named ? invocation.arguments.text("--context") : contexts->current;
  if (name.empty() && !named) return std::optional<ServerContext>();
  auto found = find_context(*contexts, name);
  if (!found) return found.error();
  return std::optional(std::move(*found));
}

Outcome<Arguments> with_context(const Invocation& invocation) {
  Arguments arguments = invocation.arguments;
  const bool named = arguments.origin("--context") == Origin::kOption;
  if (!named && arguments.given("--server")) return arguments;
  const auto context = context_in_use(invocation);
  if (!context) return context.error();
  if (!*context) return arguments;
  const auto set = [&](std::string_view option, const std::string& value) {
    const auto origin = arguments.origin(option);
    const bool first = origin == Origin::kOption || (origin == Origin::kEnvironment && !named);
    if (!value.empty() && !first) arguments.set(option, {value});
  };
  set("--server", (*context)->server);
  const bool has_key =
      !arguments.given("--key-file") && !value_in(invocation.environment, "PORTWAY_API_KEY").empty();
  if (named || !has_key) set("--key-file", (*context)->key_file);
  set("--ca", (*context)->ca);
  set("--cert", (*context)->cert);
  set("--cert-key", (*context)->cert_key);
  return arguments;
}

}  // namespace portway

#include "client/request.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cassert>
#include <optional>
#include <ostream>
#include <utility>

#include "client/contexts.h"
#include "client/credentials.h"
#include "client/output.h"

namespace portway {
namespace {

namespace json = boost::json;

constexpr std::string_view kPageSize = "1000";  // the API's maximum
constexpr std::size_t kPagesMax = 1000;

json::value body_value(const Parameter& parameter, const Arguments& arguments) {
  if (parameter.kind == Kind::kBool) return arguments.text(parameter.name) == "true";
  if (parameter.kind == Kind::kEntry) {
    json::object entries;
    for (const std::string& text : arguments.all(parameter.name)) {
      const std::size_t equals = text.find('=');
      entries[text.substr(0, equals)] = text.substr(equals + 1);
    }
    return entries;
  }
  if (parameter.repeatable) {
    json::array list;
    for (const std::string& text : arguments.all(parameter.name)) list.emplace_back(text);
    return list;
  }
  if (const auto number = arguments.number(parameter.name); number && parameter.kind != Kind::kText) {
    return *number;
  }
  return json::string(arguments.text(parameter.name));
}

/// The member of the body, or of an object in it: "target.kind".
json::value& member(json::object& body, std::string_view field) {
  const std::size_t dot = field.find('.');
  if (dot == std::string_view::npos) return body[field];
  json::value& inner = body[field.substr(0, dot)];
  if (!inner.is_object()) inner.emplace_object();
  return inner.get_object()[field.substr(dot + 1)];
}

/// An ETag is quoted in a header, but may be given without quotation marks, which a shell removes.
std::string header_value(const Parameter& parameter, const Arguments& arguments) {
  const std::string& text = arguments.text(parameter.name);
  const bool bare = parameter.field == "If-Match" && text != "*" && text.find('"') == std::string::npos;
  return bare ? '"' + text + '"' : text;
}

/// The parameter that a value of Place::kBodyNull names.
const Parameter& parameter_of(const Command& command, std::string_view name) {
  const auto found = std::ranges::find_if(command.parameters, [&](const Parameter& each) {
    return each.name.starts_with("--") && each.name.substr(2) == name;
  });
  assert(found != command.parameters.end());
  return *found;
}

/// Why the arguments contradict each other or change nothing; nothing if they are fine.
std::optional<Failure> why_not(const Command& command, const Arguments& arguments) {
  bool changes = false;
  for (const Parameter& parameter : command.parameters) {
    if (!arguments.has(parameter.name)) continue;
    changes = changes || parameter.place == Place::kBody || parameter.place == Place::kBodyNull ||
              parameter.place == Place::kBodyEntryNull;
    if (parameter.kind == Kind::kEntry) {
      for (const std::string& entry : arguments.all(parameter.name)) {
        if (entry.find('=') != std::string::npos) continue;
        return Failure{Exit::kUsage, fmt::format("{} {} is no KEY=VALUE.", parameter.name, entry),
                       fmt::format("Write {} {}=VALUE.", parameter.name, entry)};
      }
    }
    if (parameter.place != Place::kBodyNull) continue;
    for (const std::string& name : arguments.all(parameter.name)) {
      if (!arguments.has(parameter_of(command, name).name)) continue;
      return Failure{Exit::kUsage, fmt::format("--{0} sets what {1} {0} removes.", name, parameter.name),
                     "Give only one of them."};
    }
  }
  if (changes || command.method != "PATCH") return std::nullopt;
  return Failure{Exit::kUsage, "There is nothing to change.",
                 fmt::format("See portway {} --help for what can be changed.", command.full_name())};
}

/// The command's path with the arguments in place of "{NAME}".
std::string path_of(const Command& command, const Arguments& arguments) {
  std::string path;
  std::string_view rest = command.path;
  while (!rest.empty()) {
    const std::size_t open = std::min(rest.find('{'), rest.size());
    path += rest.substr(0, open);
    rest.remove_prefix(open);
    if (rest.empty()) break;
    const std::size_t close = rest.find('}');
    assert(close != std::string_view::npos);
    path += percent_encoded(arguments.text(rest.substr(1, close - 1)));
    rest.remove_prefix(close + 1);
  }
  return path;
}

Exit exit_of(unsigned status) {
  switch (status) {
    case 401:
    case 403:
      return Exit::kNotAllowed;
    case 404:
      return Exit::kNotFound;
    case 429:
    case 503:
      return Exit::kBusy;
    default:
      return Exit::kRefused;
  }
}

/// A remedy that only the client knows, not the server.
std::string remedy(const HttpAnswer& answer, const HttpOptions& options) {
  if (answer.status == 401 && options.key.empty()) {
    return "No key was sent: give its file in --key-file or PORTWAY_API_KEY_FILE, or set PORTWAY_API_KEY.";
  }
  if (answer.status == 401) return "The key that was sent is not known to this server: " + options.server.url;
  return answer.retry_after.empty() ? "" : "Try again in " + answer.retry_after + " s.";
}

/// Appends the list of `page` to the list of `answer` and replaces the cursor.
void append_page(json::object& answer, json::object& page, std::string_view envelope) {
  json::value* more = page.if_contains(envelope);
  json::value* list = answer.if_contains(envelope);
  if (more != nullptr && more->is_array() && list != nullptr && list->is_array()) {
    for (json::value& item : more->get_array()) list->get_array().push_back(std::move(item));
  }
  if (const json::value* stale = page.if_contains("stale")) answer["stale"] = *stale;
  answer.erase("next_cursor");
  if (const json::value* cursor = page.if_contains("next_cursor")) answer["next_cursor"] = *cursor;
}

Failure not_the_api(const HttpClient& client, const std::string& why) {
  return {Exit::kUnreachable, fmt::format("{}: {}.", client.options().server.url, why),
          "Check that Portway's API listens there (--server), and not another service."};
}

}  // namespace

Outcome<HttpClient> make_client(const Invocation& invocation, Console& console) {
  auto arguments = with_context(invocation);
  if (!arguments) return arguments.error();
  Invocation settled = invocation;
  settled.arguments = std::move(*arguments);
  return make_client(settled, console, {settled.arguments.text("--server")});
}

Outcome<HttpClient> make_client(const Invocation& invocation, Console& console, const KnownServer& known) {
  const Arguments& arguments = invocation.arguments;
  auto server = parse_server_address(known.url);
  if (!server) return server.error();
  auto credentials = read_credentials(arguments, invocation.environment);
  if (!credentials) return credentials.error();
  if (!credentials->warning.empty()) console.err << "portway: " << credentials->warning << "\n";
  if (server->transport == Transport::kHttp && !server->local() && !credentials->key.empty()) {
    console.err << "portway: " << server->url
                << ": the key is sent over the network in clear text; use https://\n";
  }
  return HttpClient({.server = std::move(*server),
                     .key = std::move(credentials->key),
                     .ca_file = arguments.text("--ca"),
                     .server_certificate_file = known.certificate_file,
                     .certificate_file = arguments.text("--cert"),
                     .private_key_file = arguments.text("--cert-key"),
                     .timeout = std::chrono::seconds(arguments.number("--timeout").value_or(30))});
}

std::string at_node(const Command& command, const Arguments& arguments) {
  const auto node = std::ranges::find(command.parameters, Place::kNode, &Parameter::place);
  if (node == command.parameters.end() || !arguments.has(node->name)) return {};
  return "/nodes/" + percent_encoded(arguments.text(node->name));
}

void StaleNote::look_at(const json::object& answer) {
  if (said_ || text_of(answer, "stale") != "true") return;
  said_ = true;
  console_.err << "portway: etcd cannot be reached by the gateway: the list may be old\n";
}

HttpRequest make_request(const Command& command, const Arguments& arguments, std::string_view cursor) {
  HttpRequest request{.method = std::string(command.method),
                      .target = at_node(command, arguments) + path_of(command, arguments)};
  char separator = '?';
  const auto add_query = [&](std::string_view name, std::string_view value) {
    request.target += std::exchange(separator, '&');
    request.target += std::string(name) + "=" + percent_encoded(value);
  };
  json::object body;
  bool has_body = false;
  for (const Parameter& parameter : command.parameters) {
    has_body = has_body || parameter.place == Place::kBody;
    if (!arguments.has(parameter.name)) continue;
    if (parameter.place == Place::kQuery) add_query(parameter.field, arguments.text(parameter.name));
    if (parameter.place == Place::kBody) member(body, parameter.field) = body_value(parameter, arguments);
    if (parameter.place == Place::kBodyNull) {
      for (const std::string& name : arguments.all(parameter.name))
        body[parameter_of(command, name).field] = nullptr;
    }
    if (parameter.place == Place::kBodyEntryNull) {
      for (const std::string& name : arguments.all(parameter.name)) {
        json::value& entries = body[parameter.field];
        if (!entries.is_object()) entries.emplace_object();
        entries.get_object()[name] = nullptr;
      }
    }
    if (parameter.place == Place::kHeader) {
      request.headers.emplace_back(parameter.field, header_value(parameter, arguments));
    }
  }
  if (command.paged) add_query("limit", kPageSize);
  if (!cursor.empty()) add_query("cursor", cursor);
  if (has_body) request.body = json::serialize(body);  // also if nothing is in it
  return request;
}

Outcome<json::object> ask(const HttpClient& client, const HttpRequest& request) {
  const auto answer = client.send(request);
  if (!answer) return answer.error();
  if (answer->status < 200 || answer->status > 299) return refusal(*answer, client.options());
  if (answer->body.empty()) return json::object();  // of a deletion: there is no ETag either
  boost::system::error_code error;
  json::value value = json::parse(answer->body, error);
  if (error || !value.is_object()) {
    return not_the_api(client, "the answer is not a JSON object");
  }
  if (!answer->etag.empty()) value.get_object()["etag"] = answer->etag;
  return std::move(value.get_object());
}

Outcome<json::object> fetch(const HttpClient& client, const Command& command, const Arguments& arguments) {
  auto answer = ask(client, make_request(command, arguments));
  if (!answer) return explained(client, command, arguments, answer.error());
  if (!command.envelope.empty() && !answer->contains(command.envelope)) {
    return not_the_api(client, fmt::format("the answer has no \"{}\"", command.envelope));
  }
  for (std::size_t pages = 1; answer && command.paged; ++pages) {
    const std::string cursor = text_of(*answer, "next_cursor");
    if (cursor.empty()) break;
    if (pages == kPagesMax) {
      return Failure{Exit::kUnreachable, fmt::format("The list has more than {} pages.", kPagesMax),
                     "Check --server: this may not be Portway's API."};
    }
    auto page = ask(client, make_request(command, arguments, cursor));
    if (!page) return page.error();
    append_page(*answer, *page, command.envelope);
  }
  return answer;
}

Failure refusal(const HttpAnswer& answer, const HttpOptions& options) {
  boost::system::error_code error;
  const json::value document = json::parse(answer.body, error);
  const bool is_problem =
      !error && document.is_object() && answer.content_type.starts_with("application/problem+json");
  if (!is_problem) {
    // A success that is refused here is of another service.
    const bool is_success = answer.status >= 200 && answer.status <= 299;
    return {is_success ? Exit::kUnreachable : exit_of(answer.status),
            fmt::format("{}: HTTP status {} {}.", options.server.url, answer.status,
                        is_success ? "with an answer of another kind" : "without a problem document"),
            "Check --server, and whether a proxy stands between you and Portway's API."};
  }
  const json::object& problem = document.get_object();
  std::string facts;
  for (const std::string_view member : {"code", "status", "field", "limit", "current", "request_id"}) {
    std::string text = text_of(problem, member);
    if (member == "status" && text.empty()) text = std::to_string(answer.status);
    if (!text.empty()) facts += fmt::format("{}{}: {}", facts.empty() ? "" : ", ", member, text);
  }
  return {exit_of(answer.status), text_of(problem, "title") + ": " + text_of(problem, "detail"),
          remedy(answer, options), std::move(facts), json::serialize(problem)};
}

Failure explained(const HttpClient& client, const Command& command, const Arguments& arguments,
                  Failure failure) {
  const bool names_node = arguments.has("--node");
  const bool is_plain = command.answered_by == AnsweredBy::kAny && !names_node;
  const bool wants_node = failure.facts.find("field: node") != std::string::npos;
  if ((is_plain && !wants_node) || (failure.exit != Exit::kNotFound && failure.exit != Exit::kRefused))
    return failure;
  const auto info = ask(client, {.method = "GET", .target = "/v1/info"});
  if (!info) return failure;
  const std::string& server = client.options().server.url;
  const bool is_gateway = text_of(*info, "role") == "gateway";
  if (!is_gateway && (names_node || command.answered_by == AnsweredBy::kGateway)) {
    return {failure.exit, fmt::format("{} is a node and not a gateway: it knows of no other nodes.", server),
            names_node ? "Leave out --node, or give the address of a gateway in --server."
                       : "Give the address of a gateway in --server."};
  }
  if (is_gateway && !names_node && (wants_node || command.answered_by == AnsweredBy::kNode)) {
    return {failure.exit, fmt::format("{} is a gateway, and does not know which node is meant.", server),
            "Name it with --node; portway nodes lists them."};
  }
  return failure;
}

Outcome<void> run_request(const Invocation& invocation, Console& console) {
  const Command& command = *invocation.command;
  if (auto mistake = why_not(command, invocation.arguments)) return *mistake;
  const auto client = make_client(invocation, console);
  if (!client) return client.error();
  const auto answer = fetch(*client, command, invocation.arguments);
  if (!answer) return answer.error();
  StaleNote(console).look_at(*answer);
  if (invocation.wants_data()) {
    if (!answer->empty()) console.out << as_data(invocation.format(), *answer);
  } else if (command.show != nullptr) {
    command.show(command, *answer, invocation.format(), console);
  }
  if (command.verdict.empty()) return {};
  const std::string verdict = fmt::format("{}.{}", command.envelope, command.verdict);
  if (text_of(*answer, verdict) == "true") return {};
  return Failure{Exit::kRefused, invocation.wants_data() ? "" : "A step of the check is not ok."};
}

}  // namespace portway

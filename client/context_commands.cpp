#include "client/context_commands.h"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <ostream>

#include "client/contexts.h"
#include "client/output.h"

namespace portway {
namespace {

namespace json = boost::json;

json::object context_object(const ServerContext& context) {
  json::object object{{"name", context.name}, {"server", context.server}};
  const auto add = [&](const char* name, const std::string& file) {
    if (!file.empty()) object[name] = file;
  };
  add("key_file", context.key_file);
  add("ca", context.ca);
  add("cert", context.cert);
  add("cert_key", context.cert_key);
  return object;
}

}  // namespace

Outcome<void> run_context_list(const Invocation& invocation, Console& console) {
  const auto contexts = read_contexts(invocation.environment);
  if (!contexts) return contexts.error();
  const auto in_use = context_in_use(invocation);
  if (!in_use) return in_use.error();
  const std::string name = *in_use ? (*in_use)->name : std::string();
  json::array list;
  for (const ServerContext& context : contexts->all) {
    json::object object = context_object(context);
    const bool used = context.name == name;
    if (invocation.wants_data()) {
      object["in_use"] = used;
    } else {
      object["in_use"] = used ? "*" : "";
    }
    list.push_back(std::move(object));
  }
  const json::object answer{{"contexts", list}, {"file", contexts->path}};
  if (invocation.wants_data()) {
    console.out << as_data(invocation.format(), answer);
  } else {
    show_list(*invocation.command, answer, invocation.format(), console);
  }
  return {};
}

Outcome<void> run_context_use(const Invocation& invocation, Console& console) {
  const auto used = use_context(invocation.environment, invocation.arguments.text("CONTEXT"));
  if (!used) return used.error();
  const json::object answer{{"context", context_object(*used)}};
  console.out << (invocation.wants_data() ? as_data(invocation.format(), answer)
                                          : used->name + ": " + used->server + "\n");
  return {};
}

Outcome<void> run_context_show(const Invocation& invocation, Console& console) {
  Invocation named = invocation;
  if (const std::string& name = invocation.arguments.text("CONTEXT"); !name.empty()) {
    named.arguments.set("--context", {name});
  }
  const auto context = context_in_use(named);
  if (!context) return context.error();
  if (!*context) {
    return Failure{Exit::kUsage, "No context is in use.",
                   "Choose one of portway context list with portway context use."};
  }
  const json::object answer{{"context", context_object(**context)}};
  if (invocation.wants_data()) {
    console.out << as_data(invocation.format(), answer);
  } else {
    show_resource(*invocation.command, answer, invocation.format(), console);
  }
  return {};
}

}  // namespace portway

// The parts of the table of commands, one function per resource, and the parameters that several of them
// share. Only commands.cpp and these parts include this header.
#pragma once

#include <vector>

#include "client/command.h"

namespace portway {

std::vector<Command> instance_commands();
std::vector<Command> forward_commands();
std::vector<Command> connection_commands();
std::vector<Command> key_commands();
/// Profiles, events and the commands about this node or this program.
std::vector<Command> node_commands();

inline const Parameter kInstance{.name = "INSTANCE", .help = "The instance's id.", .place = Place::kPath};
inline const Parameter kForward{.name = "FORWARD", .help = "The forward's id.", .place = Place::kPath};
inline const Parameter kInterval{.name = "--interval",
                                 .help = "Seconds between updates.",
                                 .kind = Kind::kCount,
                                 .value = "SECONDS",
                                 .fallback = "2"};
inline const Parameter kUpdates{
    .name = "--count",
    .help = "Stop after this many; without it, the command runs until interrupted.",
    .kind = Kind::kCount,
    .value = "N"};

}  // namespace portway

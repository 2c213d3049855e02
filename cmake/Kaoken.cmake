# kaoken_add_model(): a checkpoint becomes a library target.
#
#   kaoken_add_model(<target> CHECKPOINT <directory, GGUF file or hub id>
#                    [NAME <identifier> | NAMED_BY_CHECKPOINT] [SOURCE <text>] [REVISION <revision>] [COMMIT <commit>]
#                    [ADAPTER <directory>] [RECIPE <file>]
#                    [DTYPE own|float32|bfloat16|int8|int8-g32|int4|int4-min|int4-all] [TENSOR_DTYPES <pattern>=<type>...]
#                    [CACHE_DTYPE float32|bfloat16|int8] [CONTEXT <n>] [ISA native|portable|<list>] [KERNELS packed|exploded]
#                    [JOBS <n>] [COMPILE_MEMORY <size>] [STATIC])
#
# <target> is a shared library that exports kaoken_model() and kaoken_model_<name>() of kaoken/kaoken.h and needs
# nothing but the C++ runtime; with STATIC it is an archive that exports kaoken_model_<name>() alone, so that one
# program can hold several. A shared library ends with a digest of itself, which `kaoken verify` checks until a tool such
# as strip changes the file. Build statistics lie beside it, in <library>.json. A relative CHECKPOINT starts at
# the calling CMakeLists.txt; what exists wins over a hub id. NAME is by default the target, or the
# checkpoint's with NAMED_BY_CHECKPOINT. To install it, install(TARGETS <target> EXPORT ...) needs no other target, and
# ${KAOKEN_ROOT}/runtime/include holds the header. ISA is of the machine that the compiler makes code for.
# The types are those of codegen/dtypes.py: DTYPE of all weights, TENSOR_DTYPES of some, CACHE_DTYPE of the KV cache.
# CONTEXT is how many positions a decoder's sequences have, where that is less than in the checkpoint.
# KERNELS exploded turns small float32 matrices into straight-line code (codegen/exploded.py).
# ADAPTER is a LoRA adapter of peft, merged into the weights; a relative one starts where a relative CHECKPOINT does.
# RECIPE is a file of `kaoken calibrate`, and a relative one starts there, too.
# REVISION chooses one of a hub id; SOURCE and COMMIT only say what the library records of where a directory came from.
#
# Needs a Python with NumPy, safetensors and Jinja2 (and huggingface_hub for a hub id, gguf and tokenizers for a GGUF): KAOKEN_PYTHON, else the one
# that find_package(Python) finds. Needs the Ninja generator, for job pools and depfiles.

include_guard()
include("${CMAKE_CURRENT_LIST_DIR}/KaokenISA.cmake")

# The rows of codegen/settings.py. In Kaoken's own builds they are cache entries, KAOKEN_ISA and so on, which
# kaoken_add_model(... CACHED_SETTINGS) reads.
set(KAOKEN_SETTINGS REVISION ADAPTER DTYPE RECIPE TENSOR_DTYPES CACHE_DTYPE CONTEXT KERNELS ISA JOBS COMPILE_MEMORY)

# A project in C may forget that its models are C++. CMake takes the language at file scope alone, behind project().
if(PROJECT_NAME AND NOT CMAKE_CXX_COMPILER_LOADED AND NOT CMAKE_CURRENT_FUNCTION)
  enable_language(CXX)
endif()

set(KAOKEN_ROOT "${CMAKE_CURRENT_LIST_DIR}/..")
cmake_path(NORMAL_PATH KAOKEN_ROOT)
cmake_path(REMOVE_FILENAME KAOKEN_ROOT)
option(KAOKEN_WERROR "Make warnings in Kaoken's own C++ errors" OFF)
# What no flag of a user's may change: a link-time optimizer moves .incbin away from its file, and fast maths the bits.
set(KAOKEN_OURS -fno-lto -fno-fast-math -ffp-contract=off -fno-math-errno)
list(APPEND KAOKEN_OURS $<$<CXX_COMPILER_ID:GNU>:-fno-gnu-unique>)
set(KAOKEN_WARNINGS -Wall -Wextra $<IF:$<BOOL:${KAOKEN_WERROR}>,-Werror,-Wno-error>)
list(APPEND KAOKEN_OURS ${KAOKEN_WARNINGS})
# Of code for an ISA: g++ is wrong about its own AVX-512 headers.
set(KAOKEN_ISA_WARNINGS $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized> $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)

if(POLICY CMP0174)
  cmake_policy(SET CMP0174 NEW) # an empty argument is empty, not absent
endif()

function(kaoken_add_model TARGET)
  set(single CHECKPOINT NAME SOURCE COMMIT ${KAOKEN_SETTINGS})
  list(REMOVE_ITEM single TENSOR_DTYPES)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "STATIC;NAMED_BY_CHECKPOINT;CACHED_SETTINGS" "${single}" "TENSOR_DTYPES")
  if(ARG_CACHED_SETTINGS)
    foreach(setting IN LISTS KAOKEN_SETTINGS)
      set(ARG_${setting} "${KAOKEN_${setting}}")
    endforeach()
  endif()
  if(ARG_UNPARSED_ARGUMENTS OR NOT ARG_CHECKPOINT)
    message(FATAL_ERROR "kaoken_add_model(${TARGET}): give CHECKPOINT; not understood: '${ARG_UNPARSED_ARGUMENTS}'")
  endif()
  if(NOT ARG_NAME AND NOT ARG_NAMED_BY_CHECKPOINT)
    string(MAKE_C_IDENTIFIER "${TARGET}" ARG_NAME)
    string(TOLOWER "${ARG_NAME}" ARG_NAME)
  endif()
  if(NOT CMAKE_CXX_COMPILER_LOADED)
    message(FATAL_ERROR "kaoken_add_model(${TARGET}): a model is C++; write project(... LANGUAGES C CXX)")
  endif()
  kaoken_check_generator()
  kaoken_find_python()
  set(out "${CMAKE_CURRENT_BINARY_DIR}/${TARGET}.kaoken")
  kaoken_plan("${out}")
  kaoken_check_name("${TARGET}")
  kaoken_watch("${TARGET}" "${out}")
  kaoken_runtime("${out}")
  kaoken_generate("${TARGET}" "${out}")
  kaoken_compile("${TARGET}" "${out}")
endfunction()

# Two models of one name would define the same symbols, and a linker would drop one of them without a word.
function(kaoken_check_name TARGET)
  get_property(names GLOBAL PROPERTY KAOKEN_MODEL_NAMES)
  if(KAOKEN_PLAN_NAME IN_LIST names)
    message(FATAL_ERROR "kaoken_add_model(${TARGET}): another model is named ${KAOKEN_PLAN_NAME} too; give NAME")
  endif()
  set_property(GLOBAL APPEND PROPERTY KAOKEN_MODEL_NAMES "${KAOKEN_PLAN_NAME}")
endfunction()

function(kaoken_check_generator)
  if(NOT CMAKE_GENERATOR MATCHES "Ninja")
    message(FATAL_ERROR "Kaoken needs Ninja's job pools to cap memory; configure with -G Ninja")
  endif()
endfunction()

function(kaoken_find_python)
  if(NOT KAOKEN_PYTHON)
    find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
    set(KAOKEN_PYTHON "${Python_EXECUTABLE}" CACHE FILEPATH "The Python that runs Kaoken's codegen")
  endif()
  # Run from the directory that holds the package codegen, which a "safe path" would hide.
  set(KAOKEN_CODEGEN ${CMAKE_COMMAND} -E env --unset=PYTHONSAFEPATH "${KAOKEN_PYTHON}" -m codegen PARENT_SCOPE)
endfunction()

# The architecture that the compiler makes code for. CMAKE_SYSTEM_PROCESSOR is this machine's where CXX names a cross
# compiler and no toolchain file says so.
function(kaoken_machine RESULT)
  separate_arguments(command UNIX_COMMAND "${CMAKE_CXX_COMPILER_ARG1} ${CMAKE_CXX_FLAGS}")
  if(CMAKE_CXX_COMPILER_TARGET AND CMAKE_CXX_COMPILE_OPTIONS_TARGET)
    list(APPEND command "${CMAKE_CXX_COMPILE_OPTIONS_TARGET}${CMAKE_CXX_COMPILER_TARGET}")
  endif()
  execute_process(COMMAND "${CMAKE_CXX_COMPILER}" ${command} -dumpmachine OUTPUT_VARIABLE triple ERROR_QUIET)
  if(triple MATCHES "^([A-Za-z0-9_]+)-")
    set(${RESULT} "${CMAKE_MATCH_1}" PARENT_SCOPE)
  else()
    set(${RESULT} "${CMAKE_SYSTEM_PROCESSOR}" PARENT_SCOPE)
  endif()
endfunction()

# Configure time: which files will come. Reads the caller's ARG_*; sets KAOKEN_PLAN_* there.
macro(kaoken_plan OUT)
  set(plan_options "")
  foreach(option NAME SOURCE COMMIT ${KAOKEN_SETTINGS})
    if(ARG_${option})
      string(TOLOWER "--${option}" flag)
      string(REPLACE "_" "-" flag "${flag}")
      string(REPLACE ";" "," value "${ARG_${option}}")
      list(APPEND plan_options "${flag}" "${value}")
    endif()
  endforeach()
  kaoken_machine(machine)
  execute_process(
    COMMAND ${KAOKEN_CODEGEN} plan "--checkpoint" "${ARG_CHECKPOINT}" --root "${CMAKE_CURRENT_SOURCE_DIR}"
            --machine "${machine}" ${plan_options} --out "${OUT}"
    WORKING_DIRECTORY "${KAOKEN_ROOT}"
    RESULT_VARIABLE plan_status
    ERROR_VARIABLE plan_error)
  if(plan_error MATCHES "ModuleNotFoundError")
    message(FATAL_ERROR "Kaoken's codegen ran with ${KAOKEN_PYTHON}, which lacks a package that it needs; run "
                        "pip install \"kaoken[bake]\" there, set KAOKEN_PYTHON to a Python that has it, or, where "
                        "pyproject.toml has build requirements, write\n"
                        "  requires = [\"scikit-build-core\", \"kaoken[bake]\"]\n${plan_error}")
  elseif(plan_status)
    message(FATAL_ERROR "${plan_error}")
  elseif(plan_error)
    message(WARNING "${plan_error}")
  endif()
  include("${OUT}/plan.cmake")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${KAOKEN_PLAN_INPUTS}")
endmacro()

# Every build compares the checkpoint's files with those of the plan before anything else, for Ninja would take files
# that are older than what was made of the last ones for unchanged. An input that never exists makes it run; what it
# writes is an input of CMake's, which then makes the plan anew.
function(kaoken_watch TARGET OUT)
  add_custom_command(OUTPUT "${OUT}/checkpoint.always" DEPENDS $<0:>) # a phony one, of nothing
  set_source_files_properties("${OUT}/checkpoint.always" PROPERTIES SYMBOLIC ON)
  add_custom_command(
    OUTPUT "${OUT}/checkpoint.changed"
    DEPENDS "${OUT}/checkpoint.always"
    COMMAND "${KAOKEN_PYTHON}" -I -S "${KAOKEN_ROOT}/codegen/identity.py" "${OUT}"
    COMMENT "Kaoken: looking for changes in the checkpoint of ${TARGET}"
    VERBATIM)
  add_custom_target(${TARGET}_checkpoint DEPENDS "${OUT}/checkpoint.changed")
  if(NOT EXISTS "${OUT}/checkpoint.changed") # CMake takes no input that is not there
    file(TOUCH "${OUT}/checkpoint.changed")
  endif()
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${OUT}/checkpoint.changed")
endfunction()

# Build time: the files of the plan. The program that makes them is in a depfile.
function(kaoken_generate TARGET OUT)
  set(names ${KAOKEN_PLAN_TEXTS} model.h ${KAOKEN_PLAN_CODE} ${KAOKEN_PLAN_WEIGHTS} ${KAOKEN_PLAN_BLOBS} library.cpp)
  list(TRANSFORM names PREPEND "${OUT}/")
  get_property(pools GLOBAL PROPERTY JOB_POOLS)
  if(NOT pools MATCHES "kaoken=")
    set_property(GLOBAL APPEND PROPERTY JOB_POOLS "kaoken=${KAOKEN_PLAN_POOL}")
  endif()
  kaoken_measure("${OUT}" measure)
  add_custom_command(
    OUTPUT ${names}
    COMMAND ${measure} codegen -- ${KAOKEN_CODEGEN} generate --out "${OUT}"
    DEPENDS "${OUT}/options.json" "${OUT}/checkpoint.json"
    DEPFILE "${OUT}/codegen.d"
    WORKING_DIRECTORY "${KAOKEN_ROOT}"
    JOB_POOL kaoken
    COMMENT "Kaoken: generating ${TARGET} from its checkpoint"
    VERBATIM)
endfunction()

# The launcher that records in OUT what a process takes, as a command to be continued.
function(kaoken_measure OUT RESULT)
  set(${RESULT} "${KAOKEN_PYTHON}" -I "${KAOKEN_ROOT}/cmake/measure.py" "${OUT}" PARENT_SCOPE)
endfunction()

# Runs every compilation and link of a target in the one job pool, whose size the first plan of the build decides, and
# records what each takes in OUT.
function(kaoken_cap TARGET OUT)
  kaoken_measure("${OUT}" measure)
  set_target_properties(
    ${TARGET} PROPERTIES JOB_POOL_COMPILE kaoken
                         JOB_POOL_LINK kaoken
                         CXX_COMPILER_LAUNCHER "${measure};compile;--"
                         CXX_LINKER_LAUNCHER "${measure};link;--")
endfunction()

function(kaoken_compile TARGET OUT)
  # CMake keeps one set of source properties for all targets of a directory, so the groups serve every ISA.
  foreach(source group IN ZIP_LISTS KAOKEN_PLAN_CODE KAOKEN_PLAN_GROUPS)
    set_source_files_properties("${OUT}/${source}" PROPERTIES UNITY_GROUP "${group}")
  endforeach()
  set(code ${KAOKEN_PLAN_CODE})
  list(TRANSFORM code PREPEND "${OUT}/")
  set(objects $<TARGET_OBJECTS:kaoken_runtime>)
  foreach(isa IN LISTS KAOKEN_PLAN_ISAS)
    kaoken_isa_flags(${isa} flags)
    add_library(${TARGET}_${isa} OBJECT ${code})
    target_compile_options(${TARGET}_${isa} PRIVATE ${flags} -fno-exceptions
                           ${KAOKEN_ISA_WARNINGS})
    target_compile_definitions(${TARGET}_${isa} PRIVATE KAOKEN_ISA=${isa})
    target_include_directories(${TARGET}_${isa} PRIVATE "${KAOKEN_ROOT}/runtime/kernels" "${OUT}")
    if(KAOKEN_PLAN_KERNELS STREQUAL "exploded") # whose chains would be gathered into vectors again
      target_compile_options(${TARGET}_${isa} PRIVATE -fno-tree-slp-vectorize)
    endif()
    set_target_properties(${TARGET}_${isa} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
    kaoken_compile_properties(${TARGET}_${isa} "${OUT}")
    list(APPEND objects $<TARGET_OBJECTS:${TARGET}_${isa}>)
  endforeach()

  # .incbin inputs are in no compiler's depfile, and a unity build drops OBJECT_DEPENDS.
  foreach(source blob IN ZIP_LISTS KAOKEN_PLAN_WEIGHTS KAOKEN_PLAN_BLOBS)
    set_source_files_properties("${OUT}/${source}" PROPERTIES OBJECT_DEPENDS "${OUT}/${blob}"
                                                              SKIP_UNITY_BUILD_INCLUSION ON)
  endforeach()
  set(texts ${KAOKEN_PLAN_TEXTS})
  list(TRANSFORM texts PREPEND "${OUT}/")
  set_source_files_properties("${OUT}/library.cpp" PROPERTIES OBJECT_DEPENDS "${texts}"
                                                              SKIP_UNITY_BUILD_INCLUSION ON)
  set(weights ${KAOKEN_PLAN_WEIGHTS})
  list(TRANSFORM weights PREPEND "${OUT}/")
  if(ARG_STATIC)
    add_library(${TARGET} STATIC "${OUT}/library.cpp" ${weights} ${objects})
    # CMake itself gives a linker the C++ library, except in a project in C that imports an installed archive.
    set(libraries ${CMAKE_CXX_IMPLICIT_LINK_LIBRARIES})
    list(FILTER libraries INCLUDE REGEX "^(stdc\\+\\+|c\\+\\+|m)$")
    list(REMOVE_DUPLICATES libraries)
    target_link_libraries(${TARGET} PUBLIC ${CMAKE_THREAD_LIBS_INIT} "$<INSTALL_INTERFACE:${libraries}>")
  else()
    add_library(${TARGET} SHARED "${OUT}/library.cpp" ${weights} ${objects})
    target_compile_definitions(${TARGET} PRIVATE KAOKEN_SHARED_LIBRARY=1)
    target_link_libraries(${TARGET} PRIVATE ${CMAKE_THREAD_LIBS_INIT})
    kaoken_link_options(${TARGET})
    add_custom_command(
      TARGET ${TARGET} POST_BUILD
      COMMAND "${KAOKEN_PYTHON}" -I "${KAOKEN_ROOT}/codegen/seal.py" "$<TARGET_FILE:${TARGET}>"
      VERBATIM)
  endif()
  target_include_directories(${TARGET} PUBLIC "$<BUILD_INTERFACE:${KAOKEN_ROOT}/runtime/include>" PRIVATE "${OUT}")
  kaoken_compile_properties(${TARGET} "${OUT}")
  kaoken_measure("${OUT}" measure)
  add_custom_command(
    TARGET ${TARGET} POST_BUILD
    COMMAND ${measure} --report "$<TARGET_FILE:${TARGET}>.json"
    VERBATIM)
endfunction()

# What every object of a model shares.
function(kaoken_compile_properties TARGET OUT)
  target_include_directories(${TARGET} PRIVATE "${KAOKEN_ROOT}/runtime/include")
  target_compile_features(${TARGET} PRIVATE cxx_std_17)
  target_compile_options(${TARGET} PRIVATE -O3 ${KAOKEN_OURS})
  set_target_properties(
    ${TARGET}
    PROPERTIES POSITION_INDEPENDENT_CODE ON
               CXX_VISIBILITY_PRESET hidden
               VISIBILITY_INLINES_HIDDEN ON
               CXX_EXTENSIONS OFF
               INTERPROCEDURAL_OPTIMIZATION OFF)
  kaoken_cap(${TARGET} "${OUT}")
endfunction()

# The part of a model library that is the same for all models, compiled once a build. Each library holds its objects, so
# that install(TARGETS ... EXPORT ...) needs the library alone; of several archives a linker takes the first one's.
macro(kaoken_runtime OUT)
  if(NOT KAOKEN_SINGLE_THREADED)
    find_package(Threads REQUIRED)
  endif()
  if(NOT TARGET kaoken_runtime)
    kaoken_compile_runtime("${OUT}")
  endif()
endmacro()

function(kaoken_compile_runtime OUT)
  set(sources api cpu generation isa pages sampling session)
  if(KAOKEN_SINGLE_THREADED) # for programs without threads: every session computes on its caller's alone
    list(APPEND sources single)
  else()
    list(APPEND sources arena crowd machine share team)
  endif()
  list(TRANSFORM sources PREPEND "${KAOKEN_ROOT}/runtime/src/")
  list(TRANSFORM sources APPEND ".cpp")
  add_library(kaoken_runtime OBJECT ${sources})
  target_include_directories(kaoken_runtime PRIVATE "${KAOKEN_ROOT}/runtime/include")
  target_compile_features(kaoken_runtime PRIVATE cxx_std_17)
  target_compile_options(kaoken_runtime PRIVATE -O2 ${KAOKEN_OURS} -fexceptions)
  target_compile_definitions(kaoken_runtime PRIVATE $<$<BOOL:${KAOKEN_SINGLE_THREADED}>:KAOKEN_SINGLE_THREADED=1>)
  # One compilation where memory allows: most of each file's time goes into the C++ library's headers.
  set_target_properties(kaoken_runtime PROPERTIES UNITY_BUILD ${KAOKEN_PLAN_RUNTIME_UNITY} POSITION_INDEPENDENT_CODE ON
                                                  CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
                                                  CXX_EXTENSIONS OFF INTERPROCEDURAL_OPTIMIZATION OFF)
  kaoken_cap(kaoken_runtime "${OUT}")
endfunction()

# Nothing leaves a shared model library but its entry points.
function(kaoken_link_options TARGET)
  if(APPLE)
    target_link_options(${TARGET} PRIVATE "LINKER:-exported_symbol,_kaoken_model*")
  else()
    # A build id is a digest over the whole library, which the linker would hold in memory for it.
    target_link_options(${TARGET} PRIVATE "LINKER:--version-script=${KAOKEN_ROOT}/cmake/exports.map"
                        "LINKER:--no-undefined" "LINKER:--build-id=none")
    set_property(TARGET ${TARGET} APPEND PROPERTY LINK_DEPENDS "${KAOKEN_ROOT}/cmake/exports.map")
  endif()
endfunction()

# The instruction sets of isas.json, for CMake.

include_guard()

file(READ "${CMAKE_CURRENT_LIST_DIR}/isas.json" KAOKEN_ISA_TABLE)

# The compiler flags of an ISA, as a list.
function(kaoken_isa_flags ISA RESULT)
  string(JSON count LENGTH "${KAOKEN_ISA_TABLE}" "${ISA}" flags)
  set(flags "")
  if(count GREATER 0)
    math(EXPR last "${count} - 1")
    foreach(index RANGE ${last})
      string(JSON flag GET "${KAOKEN_ISA_TABLE}" "${ISA}" flags ${index})
      list(APPEND flags "${flag}")
    endforeach()
  endif()
  set(${RESULT} "${flags}" PARENT_SCOPE)
endfunction()

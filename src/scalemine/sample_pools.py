"""Word pools, sentence templates and invented events for the demo corpus.

Every line here was written for this package: no real tweet, no real account and no real event is
quoted. A template is plain text with ``{slot}`` holes, a slot names an entry of :data:`POOLS`, and pool
entries may hold slots themselves. Blocks list one template a line; pool words are split on ``|`` too.
"""

from __future__ import annotations

import re


def _words(block: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in re.split(r"[|\n]", block) if word.strip())


def _lines(block: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in block.splitlines() if line.strip())


POOLS: dict[str, tuple[str, ...]] = {
    "n": tuple(str(number) for number in range(2, 13)),
    "nn": tuple(str(number) for number in range(13, 99)),
    "nnn": tuple(str(number) for number in range(105, 990, 7)),
    "nth": _words("2nd | 3rd | 4th | 5th | 6th | 7th | 11th | 18th | 21st | 30th | 40th | 50th"),
    "year": tuple(str(number) for number in range(1962, 2016)),
    "temp": tuple(str(number) for number in range(-6, 39)),
    "clock": tuple(f"{hour}{half}{side}" for hour in range(1, 13) for half in ("", ":30") for side in ("am", "pm")),
    "name": _words("""
        Anna | Ben | Carla | Dan | Ella | Femi | Grace | Hugo | Ines | Jack | Kira | Leo | Maya | Nico | Olive
        Priya | Quinn | Rosa | Sam | Tariq | Uma | Vera | Will | Yusuf | Zoe | Amir | Bea | Chidi | Dora | Eli
        Freya | Gus"""),
    "person": _words("""
        my sister | my brother | my mum | my dad | my grandma | my uncle | my roommate | my boss | my neighbour
        my best friend | my cousin | my aunt | my flatmate | the guy next door | our postman | my teacher
        my nephew | the new intern | my landlord | my ex | my dentist | a lady on the bus | my little cousin
        my daughter | my son | {name} | {name} from work | {name} from school | the barista | my gym buddy"""),
    "adj": _words("""
        amazing | awful | weird | perfect | tiny | huge | boring | brilliant | sweet | lovely | terrible | strange
        wonderful | lazy | fancy | cheap | quiet | loud | fresh | old | adorable | chaotic | cosy | dull | odd
        proper | ridiculous | solid | underrated | overrated | gorgeous | messy | spicy | random | slow | long
        silly | bright"""),
    "feel": _words("""
        happy | tired | so done | proud | nervous | grateful | bored | hungry | excited | sleepy | emotional
        calm | confused | lonely | jealous | hopeful | grumpy | blessed | restless | relaxed | overwhelmed | cold
        old | inspired | guilty | curious | lucky | annoyed | shy | determined"""),
    "day": _words("Monday | Tuesday | Wednesday | Thursday | Friday | Saturday | Sunday"),
    "when": _words("""
        today | tonight | this morning | tomorrow | this weekend | next week | on {day} | last night | after lunch
        before bed | all day | this afternoon | at {clock} | right now | in {n} days | yesterday | this {day}
        every {day} | again | for the {nth} time | in the middle of the night | over the holidays"""),
    "tail": _words("""
        lol | lmao | honestly | can't wait | help | send snacks | no regrets | don't ask | what a day
        I'm so {feel} | feeling {feel} | just saying | anyone else? | thoughts? | is it just me? | so {adj}
        pray for me | and I'm not ok | story of my life | we move | that's the tweet | life is good | worth it
        never again | 10/10 | not even sorry | send help | I said what I said | make it make sense | who's with me
        good times | bye | okay then | no comment | tell me I'm wrong | {n} out of 12 | and it's only {day} | mood
        ugh | yay | wow | sigh | finally | as usual | goals | it is what it is | bless | so yeah | that's all
        I need a nap | my heart | no words | best {day} ever | why am I like this | asking for a friend
        living my best life | classic {name} | ask {name} | haha | hmm"""),
    "opener": _words("""
        ok so | honestly | not gonna lie | guys | update: | so | well | lol | fun fact: | reminder:
        unpopular opinion: | hot take: | wait | omg | wow | hey | dear diary, | today I learned | no but seriously
        listen | Friends, | FYI | good news: | bad news: | question: | quick thought: | also | and now
        plot twist: | oh no | anyway"""),
    "food": _words("""
        pizza | noodles | dumplings | tacos | curry | pancakes | ramen | lasagne | sushi | fried chicken
        lentil soup | banana bread | cheesecake | grilled cheese | burritos | mac and cheese | jollof rice
        biryani | falafel | kimchi | garlic bread | apple pie | roast potatoes | shakshuka | spring rolls
        brownies | meatballs | pho | paella | mango sticky rice | fish and chips | carrot cake | hummus | ceviche
        porridge | waffles | nachos | plantain"""),
    "drink": _words("""
        coffee | iced tea | bubble tea | orange juice | hot chocolate | lemonade | a flat white | green tea
        cold brew | ginger beer | a smoothie | chai | oat milk latte | tap water | mint tea | a milkshake | cider
        apple juice"""),
    "team": _words("""
        Eastfield Rovers | Harbour City | Northgate United | the Lions | Redbridge Athletic | Valley Wanderers
        the Falcons | Southport Town | Kingsmoor | Westvale FC | the Otters | Old Mill Albion | Granite City
        Seaview Rangers | the Magpies of Thornby | Lakeside Dynamo | Port Amber | Hillcrest | Real Marisol
        the Comets"""),
    "position": _words("""
        striker | keeper | left back | captain | winger | manager | number {n} | midfield | bench | ref"""),
    "genre": _words("""
        jazz | techno | country | indie | afrobeats | metal | lo-fi | reggaeton | disco | folk | grime | classical
        synth pop | hip hop | punk | soul | drum and bass | highlife | bossa nova | shoegaze | gospel | ska"""),
    "band": _words("""
        The Paper Kettles | Velvet Otter | Midnight Ladder | Small Hours Club | Neon Orchard | The Tin Sparrows
        Glass Piano | Quiet Riverbank | Salt & Lanterns | Moonlit Bicycle | The Slow Elevators | Copper Fox
        Juniper Static | Hotel Umbrella | DJ Marmalade | The Left Socks | Pastel Robots | Bright Cardigan"""),
    "song": _words("""
        Window Seat | Honey on the Radio | Two Left Shoes | Call Me Sunday | Paper Moons | Staircase | Blue Kettle
        Lemon Summer | Don't Tell the Tide | Half Asleep | Seventeen Lanterns | Northern Line | Ghost in My Garden"""),
    "instrument": _words("""
        guitar | piano | drums | ukulele | violin | bass | trumpet | cello | flute | accordion | banjo"""),
    "job": _words("""
        nurse | barista | software engineer | teacher | accountant | electrician | delivery driver | chef
        designer | data analyst | plumber | receptionist | project manager | warehouse operative | carpenter
        pharmacist | care assistant | sales executive | lab technician | web developer | cleaner | HR officer
        translator | baker"""),
    "company": _words("""
        Brightleaf | Oakline Ltd | Nimbus Foods | Tallship Media | Corner & Co | Halden Group | Marigold Health
        Pinetop Logistics | Quayside Bank | Lumen Studio | Fernhill Care | Stonebridge Homes | Orchard Telecom"""),
    "town": _words("""
        Ashby Green | Millbrook | Fernley | Oxmoor | Castleton Bay | Pinehurst | Little Warren | Dunmore
        Sandy Point | Elmgate | Brookhaven | Whitcliff | Copperton | Larkfield | Ravenshaw | Tillbury Cross
        Maplewood | Stanlow | Greyfriars | Winterbourne | Cobble Hill | Saltwick | Bramley End | Highgarth"""),
    "country": _words("""
        Portugal | Japan | Kenya | Mexico | Iceland | Vietnam | Italy | Morocco | Peru | Scotland | Greece
        Thailand | Croatia | Ghana | Norway | Colombia | Ireland | Indonesia | Canada | New Zealand | Spain
        Turkey | Chile"""),
    "subject": _words("""
        maths | chemistry | history | biology | physics | statistics | French | geography | economics | philosophy
        organic chemistry | calculus | sociology | art history | anatomy | law | literature | linear algebra
        Spanish"""),
    "schoolthing": _words("""
        homework | exam | essay | group project | lab report | presentation | dissertation | timetable | revision
        assignment | reading list | lecture | seminar | coursework | thesis chapter | pop quiz"""),
    "worktask": _words("""
        the quarterly report | the budget sheet | my inbox | the stand-up | the slide deck | payroll
        the night shift | the audit | the client call | onboarding | the printer | the rota | this spreadsheet
        the interview | invoices | the team away day | the new login system | inventory | the staff meeting
        my performance review"""),
    "pet": _words("""
        my cat | my dog | our puppy | the hamster | my rabbit | the kitten | our parrot | my tortoise
        the neighbour's cat | my goldfish | the guinea pig | our old greyhound | my gecko | the foster kitten
        our beagle | my cockatiel"""),
    "petact": _words("""
        knocked over a plant | is asleep on my keyboard | ate my sock | chased a butterfly | stole a sausage
        fell off the sofa | is staring at the wall | learned to open the fridge | snores louder than dad
        refuses the expensive bed | brought me a leaf | sat in a box for {n} hours | hid under the duvet
        barked at the toaster | wants a walk at {clock} | judged my dancing | is scared of the hoover
        licked the window | has a vet appointment | rolled in mud"""),
    "sky": _words("""
        sunny | cloudy | drizzly | windy | humid | foggy | freezing | grey | warm | chilly | muggy | crisp | rainy
        mild | blowy | frosty | boiling | hazy | overcast | gorgeous"""),
    "phone": _words("""
        phone | laptop | tablet | charger | headphones | smart watch | keyboard | speaker | wifi router | camera
        monitor | power bank | microphone | earbuds | printer | e-reader"""),
    "phonebug": _words("""
        keeps freezing | won't charge | autocorrects my name | updated itself | lost all my photos
        has {n}% battery | fell in the sink | has no signal | rings in every meeting | needs a new screen
        stopped syncing | is so slow | turned itself off | won't pair | shows the wrong time
        has {nnn} unread messages | makes a clicking noise"""),
    "game": _words("""
        Puddle Quest | Star Harvest {n} | Kart Kingdom | Iron Garrison | Turnip Tycoon | Dungeon Bakery
        Skyhook Arena | Frontline Echo | Pixel Rodeo | Deep Lantern | Goblin Golf | Ghost Harbour | Farm & Forge
        Battle Beetles"""),
    "gamething": _words("""
        the final boss | level {nn} | the water temple | ranked | the tutorial | a speedrun | co-op
        the new patch | the DLC | the fishing minigame | a rare skin | the side quests | hard mode
        the daily challenge | a {nnn} day streak"""),
    "policy": _words("""
        the bus fare plan | the new budget | school meals | the housing bill | bin collections | library hours
        the cycle lane vote | parking charges | the tax reform | rent caps | the council election
        the ferry subsidy | recycling rules | the planning law | broadband funding | the pension debate
        tuition fees | the sugar tax"""),
    "politico": _words("""
        the mayor | the council | the minister | our MP | the opposition | the senate | the committee
        the governor | the parish clerk | both parties | the coalition | the candidate | the spokesperson
        the education secretary"""),
    "trip": _words("""
        the beach | the airport | the night train | a campsite | the old town | the mountains | a hostel
        the ferry | the museum | the islands | a road trip | the market | a tiny cabin | the botanical garden
        the lake | the harbour"""),
    "show": _words("""
        The Long Corridor | Bakers of Dunmore | Second Cousins | Night Ferry | Doctor Pemberly | Love Lagoon
        Hollow Lake | The Understudy | Castle Kitchen | Detective Moss | Orbit Nine | Grandma's Heist
        The Lighthouse Club | Dance Ladder | Small Claims | Sugar & Spice Wars | The Wrong Wedding
        Planet Gardeners"""),
    "ailment": _words("""
        a headache | a sore throat | hay fever | back pain | the flu | a cold | insomnia | toothache
        a stiff neck | hiccups | a migraine | blisters | cramps | a runny nose | sunburn | a cough | a stomach bug"""),
    "exercise": _words("""
        yoga | a {n}k run | squats | swimming | spin class | pilates | boxing class | a long walk | leg day
        push ups | climbing | zumba | skipping rope | rowing | planks | stretching | parkrun | dance class
        weights"""),
    "sign": _words("""
        Aries | Taurus | Gemini | Cancer | Leo | Virgo | Libra | Scorpio | Sagittarius | Capricorn | Aquarius
        Pisces"""),
    "horo": _words("""
        an old friend writes to you | trust your instincts about money | say yes to a short trip
        patience pays off | avoid big decisions before noon | a secret comes out
        romance is closer than you think | rest more, talk less | your boss notices your effort
        lucky number {nn} | Mercury asks for honesty | a family matter needs care | wear blue
        someone admires you quietly | the moon favours new plans | double-check your messages | let go of a grudge
        creative energy is high | drink water and forgive | your lucky day is {day}"""),
    "love": _words("""
        my girlfriend | my boyfriend | my wife | my husband | my crush | {name} | the love of my life | my partner
        that one boy | that girl in my class | my soulmate | someone special"""),
    "item": _words("""
        sneakers | a leather bag | a phone case | sunglasses | a winter coat | a watch | a lipstick set
        a desk lamp | a yoga mat | a coffee grinder | a denim jacket | wireless earbuds | a backpack | a plant pot
        a board game | a rain jacket | curtains | bed sheets | a hoodie | a bike lock | running shoes | a perfume
        a tent | a frying pan"""),
    "spamoffer": _words("""
        free followers | {nn}% off | a gift card | a free trial | {n} ebooks | cash prizes | a mystery box
        free shipping | crypto tips | a spa day | a loyalty bonus | two for one | a lucky draw
        ${nnn} a day from home | a new phone"""),
    "book": _words("""
        The Salt Cartographer | A Year of Small Dinners | The Tailor's Daughter | Moth Season | Ten Quiet Rooms
        Letters to Elsewhere | The Beekeeper's Alibi | How to Fold a Map | Winter Arithmetic | The Last Typist
        Orange Street | Owls of the North"""),
    "plant": _words("""
        tomatoes | basil | my monstera | the roses | tulips | strawberries | the lawn | courgettes | a cactus
        lavender | sunflowers | the hedge | chillies | the orchid | mint | the apple tree | runner beans | peonies"""),
    "chore": _words("""
        laundry | the dishes | hoovering | the ironing | the bins | cleaning the oven | folding socks
        painting the hall | assembling a wardrobe | fixing the tap | mowing the lawn | sorting the garage
        changing the sheets | the shopping"""),
    "relative": _words("""
        grandma | grandad | mum | dad | my baby sister | my twin | auntie {name} | uncle {name} | my niece
        my toddler | cousin {name} | my mother in law | the twins | my little brother | great aunt {name}"""),
    "famact": _words("""
        sends voice notes in capitals | cheated at cards | makes the best {food} | learned what a meme is
        turned {nn} | cried at the advert | called me by the dog's name | asked when I'm getting married
        is on social media now | danced at the wedding | hid the good biscuits | told the same story {n} times
        found my school photos | drew on the wall | said her first word | lost his first tooth | won at bingo
        fell asleep in the chair"""),
    "science": _words("""
        octopuses | black holes | bees | glaciers | volcanoes on other moons | sleep | bird migration | mushrooms
        the human gut | tardigrades | the speed of light | whales | dinosaurs with feathers | tree rings | honey"""),
    "photo": _words("""
        a heron | the sunrise | an old tram | street lamps | the pier | my breakfast | a rainbow | autumn leaves
        the skyline | frost on a gate | a foggy field | a red door | the full moon | a market stall | reflections
        a snail"""),
    "hashtag": _words("""
        #mood | #blessed | #foodie | #throwback | #tbt | #weekend | #love | #fail | #win | #goals | #travel
        #nofilter | #MondayMotivation | #FridayFeeling | #gamedev | #catsoftwitter | #amwriting | #fitness
        #hiring | #jobs | #NowPlaying | #matchday | #study | #selfcare | #giveaway | #ootd | #coffee | #family
        #homesweethome | #sunset | #vibes | #lol | #tv | #music | #newmusic | #quote | #parenting | #gardening
        #books | #startup | #photography | #bored"""),
    "emoji": _words("""
        😂 | 😭 | ❤️ | 😍 | 🙏 | 🤣 | 😅 | 👀 | ✨ | 🎉 | 💀 | 🙄
        🥰 | 😴 | 👏 | 🤔 | 😎 | 💪 | 🎶 | ☕ | 🐶 | 🐱 | ⚽ | 🌞 | 🌧️
        🔥 | 💯 | 😩 | 🤷 | 🙈
        🍕 | 🎂 | 📚 | 🎮 | ✈️ | 😂😂😂 | 😭😭 | ❤️❤️ | 🔥🔥 | 🙏🏽 | 😱 | 💔 | 😢 | 😨 | ⚠️ | 💥 | 🚨 | 💣"""),
    "handleA": _words("""
        sunny | tiny | mister | lady | pixel | maple | lazy | cosmic | velvet | quiet | crispy | salty | retro
        captain | mellow | dizzy | lucky | fuzzy | golden | neon | rainy | sleepy | turbo | plain | paper | minty
        sir | only"""),
    "handleB": _words("""
        otter | toast | pancake | comet | teapot | badger | waffle | lantern | noodle | pigeon | cactus | marble
        kettle | walrus | button | pepper | ferret | biscuit | pebble | magpie | turnip | bagel | sparrow | muffin
        radish | hippo"""),
    "fires": _words("fire | straight fire | absolute fire | pure fire | flames"),
    "kill": _words("kills me | is killing me | will be the death of me | slays me every time | finished me"),
    "art": _words("""
        mixtape | verse | album | remix | playlist | beat | outfit | setlist | haircut | recipe | trailer
        podcast"""),
    "flood": _words("""
        emails | memories | messages | job applications | wedding invites | spam calls | compliments | orders
        homework | baby photos"""),
    "crashplace": _words("""
        the couch | {name}'s sofa | the train home | my bed at {clock} | the floor | mum's spare room"""),
    "colours": _words("""
        colour | autumn leaves | tulips | pink and orange | laughter | flavours | lanterns | patterns"""),
    "explode": _words("""
        my notifications | my inbox | this group chat | the fandom | my timeline | the comment section | my brain
        my head"""),
    "bombed": _words("""
        the audition | my {subject} exam | the interview | the quiz | his first stand-up gig | the karaoke
        my driving theory"""),
    "drillplace": _words("""
        school | the office | the library | our building | the hospital canteen | the gym | campus | the dorm
        work | the museum"""),
    "warfilm": _words("""
        Bridge at Verrin | The Seventh Trench | Ashes over Lund | Last Convoy | Red Horizon | Siege of Tarn
        Night Raid | Iron Coast"""),
    "weaponthing": _words("""
        a tank | a sniper nest | a grenade | a rocket launcher | a turret | C4 | a barrel | a drone"""),
    "gamespot": _words("""
        the bridge | the bunker | the reactor | the enemy base | the whole convoy | the fuel depot | the tower"""),
    "carmodel": _words("""
        Solano hatchback | Pika EV | Brenta estate | Tundra Vale pickup | Kestrel coupe | Mova minivan
        Lumo city car"""),
    "insure": _words("car | home | travel | pet | flood | boiler | landlord | fire | motorbike | contents"),
    "storm": _words("""
        storm | thunderstorm | hurricane season | heavy rain | gale | blizzard | heatwave | flood watch | hail
        typhoon"""),
    "disaster": _words("""
        earthquake | flood | fire | train crash | hurricane | mine collapse | bombing | landslide | air raid
        riot"""),
    "landmark": _words("""
        chimney | cooling towers | stadium | car park | hotel | cinema | tower block | grain silo | footbridge
        power station"""),
    "es_c": _words("""
        pizza | arepas | paella | tortilla | empanadas | chocolate | sopa | arroz con pollo | churros | café"""),
    "es_p": _words("""
        mi hermana | mi mamá | mi jefe | mi vecina | mi abuelo | mi primo | la profe | mi mejor amiga | mi novio"""),
    "es_t": _words("hoy | mañana | esta noche | el lunes | el fin de semana | por la tarde | esta semana"),
    "fr_c": _words("""
        des crêpes | une raclette | du pain | une quiche | des pâtes | un gâteau | une salade | du fromage"""),
    "fr_p": _words("ma sœur | mon frère | ma mère | mon chef | ma voisine | mon chat | mon prof | ma meilleure amie"),
    "fr_t": _words("ce soir | demain | ce matin | lundi | ce week-end | cette semaine | aujourd'hui"),
    "pt_c": _words("""
        feijoada | pão de queijo | brigadeiro | açaí | pastel | lasanha | coxinha | bolo de cenoura | café"""),
    "pt_p": _words("minha mãe | meu irmão | minha vó | meu chefe | minha vizinha | meu gato | meu pai | minha prima"),
    "pt_t": _words("hoje | amanhã | de novo | na segunda | esse fim de semana | à noite | essa semana | no feriado"),
    "id_c": _words("""
        nasi goreng | bakso | mie ayam | sate | rendang | martabak | gado-gado | es teh | kopi susu | seblak"""),
    "id_p": _words("adikku | ibu | bapak | teman kantor | kakakku | tetangga | guru | sahabatku | sepupuku | bos"),
    "id_t": _words("hari ini | besok | malam ini | tadi pagi | minggu depan | besok pagi | setiap hari | hari Senin"),
    "de_c": _words("""
        Kuchen | Nudeln | Brezeln | Kartoffelsalat | Suppe | Pfannkuchen | Käsespätzle | Kaffee | Obstsalat"""),
    "de_p": _words("""
        meine Schwester | mein Bruder | meine Oma | mein Chef | meine Nachbarin | mein Hund | meine Mutter"""),
    "de_t": _words("heute | morgen | heute Abend | am Montag | am Wochenende | schon wieder | diese Woche | gestern"),
    "tl_c": _words("adobo | sinigang | pancit | halo-halo | lumpia | tapsilog | turon | kape | leche flan | sisig"),
    "tl_p": _words("""
        nanay ko | tatay ko | kuya ko | ate ko | kaibigan ko | pinsan ko | lola ko | boss ko | kapitbahay ko"""),
    "tl_t": _words("ngayon | bukas | mamaya | sa Lunes | sa Linggo | ngayong gabi | sa Sabado"),
    "ar_c": _words("القهوة | الكبسة | الفلافل | الشاي | الحمص | البيتزا | الكنافة | الشوربة | المندي"),
    "ar_p": _words("أخي | أبي | صديقي | جاري | مديري | ابن عمي | خالي | جدي"),
    "ar_t": _words("اليوم | غدا | هذا المساء | هذا الأسبوع | يوم الجمعة | الليلة | يوم الأحد"),
    "ja_c": _words("ラーメン | カレー | 寿司 | うどん | たこ焼き | おにぎり | ケーキ | 抹茶アイス | 唐揚げ | 味噌汁"),
    "ja_p": _words("妹 | 弟 | 母 | 父 | 友達 | 先輩 | 上司 | うちの猫 | 祖母 | 隣の人"),
    "ja_t": _words("今日 | 明日 | 今夜 | 週末 | 月曜日 | 来週 | 明後日 | 日曜日"),
    "hurt": _words("two | three | four | five | at least six | several | a dozen | around twenty | more than thirty"),
    "worry": _words("😢 | 🙏 | 😱 | 💔 | 🚨 | ⚠️ | 😨 | 😭 | 🙏🏽"),
    "source": _words("""
        local radio | police scanner | the council | eyewitnesses | my cousin on scene | a reporter there"""),
}

CHATTER: dict[str, tuple[str, ...]] = {
    "food": _lines("""
        just had the most {adj} {food} of my life
        {food} for breakfast, {food} for dinner
        who wants to split some {food} {when}?
        {person} makes {food} better than any restaurant in {town}
        I could eat {food} every single {day}
        tried a new recipe for {food} and it came out {adj}
        nothing beats {food} with {drink}
        can't believe the price of {food} in {town} now
        {drink} first, then we talk
        I burnt the rice but the {food} was {adj}
        is {food} a salad if I eat it with a fork?
        day {nn} of trying to quit {drink}
        waiting {nn} minutes for my {food} to be delivered
        {person} put pineapple in the {food}
        the {adj} cafe in {town} is giving away {food} {when}
        leftover {food} at {clock} hits different"""),
    "football": _lines("""
        {team} {n} - {n} {team}, what a game
        our {position} was {adj} {when}
        how is that not a penalty?? {team} robbed
        {team} need a new {position} before the window closes
        off to see {team} with {person} {when}
        {n} points clear at the top, come on {team}
        that second half from {team} was so {adj}
        transfer rumour: {team} after the {team} {position}
        VAR took {n} minutes to check that
        starting lineup for {team}: same as last {day}
        season ticket renewed, {team} till I die
        my kid scored her first goal for the under {n}s {when}
        {team} away kit is {adj}
        if {team} lose to {team} I'm supporting a new sport"""),
    "music": _lines("""
        listening to {band} on repeat {when}
        #NowPlaying {song} by {band}
        got tickets to see {band} in {town}!
        the new {band} record is {adj} {genre}
        {genre} playlists are the only way I get work done
        started learning the {instrument} {when}
        {song} always makes me feel {feel}
        who remembers {song}? takes me back to {year}
        {person} thinks {band} are better than {band}
        the {instrument} solo in {song} is {adj}
        {band} cancelled the {town} show
        {genre} night at the pub in {town} {when}
        my neighbour practises the {instrument} at {clock}
        that {band} chorus has been in my head for {n} days"""),
    "work": _lines("""
        {n} meetings {when} and none of them needed me
        finally finished {worktask}
        who broke {worktask} {when}?
        {person} asked me to redo {worktask}
        working from home means {worktask} in pyjamas
        is it {day} yet? {worktask} is so {adj}
        first day at {company} and I already lost my badge
        got promoted at {company}!!
        somebody microwaved {food} in the office {when}
        my commute took {nn} minutes {when}
        note to self: never volunteer for {worktask}
        {worktask} could have been an email
        handing in my notice at {company} {when}
        overtime {when}, at least there's {drink}"""),
    "school": _lines("""
        {schoolthing} due at {clock} and I have written {n} words
        {subject} is going to be so {adj} {when}
        got {nn}% in {subject}!
        {person} copied my {subject} {schoolthing}
        does anyone have notes for {subject}?
        why do we have {subject} on a {day} morning
        my {schoolthing} group hasn't replied in {n} days
        library till {clock} with {drink}
        passed {subject}, goodbye forever
        I've been on page {n} of this {schoolthing} {when}
        our {subject} teacher brought {food} to class
        graduating {when}, feeling {feel}
        the {subject} {schoolthing} has {nn} questions"""),
    "pets": _lines("""
        {pet} {petact}
        {pet} {petact} and then {petact}
        woke up because {pet} {petact}
        can someone explain why {pet} {petact}
        {pet} is {nn} in human years and still {petact}
        happy adoption day to {pet}!
        {person} got a rescue dog and it {petact}
        vet says {pet} needs to lose weight
        looking for a sitter for {pet} {when}
        I pay the rent but {pet} owns the flat
        {pet} had {food} for dinner, don't judge
        lost: grey tabby near {town} station, answers to {name}"""),
    "weather": _lines("""
        so {sky} {when}
        it's {sky} in {town} and I forgot my jacket
        {temp} degrees in {town}, {sky} again
        love a {sky} {day}
        {sky} mornings make me {feel}
        hung the washing out and now it's {sky}
        could it be less {sky} please
        first {sky} {day} of the year, ice cream time
        from {sky} to {sky} in {n} minutes, classic {town}
        {sky} walk with {pet} {when}
        my hair hates this {sky} weather
        nice rainbow over {town} {when}"""),
    "gadgets": _lines("""
        my {phone} {phonebug}
        new {phone} day!
        why is it that my {phone} {phonebug} every {day}
        anyone know how to fix it when the {phone} {phonebug}?
        dropped my {phone} {when}, screen is fine somehow
        left my {phone} on the bus to {town}
        paid {nnn} for a {phone} and it {phonebug}
        {person} thinks a new {phone} fixes everything
        selling an old {phone}, barely used
        turned the {phone} off and on again like a professional
        mum's {phone} {phonebug}, I am tech support {when}
        password must contain a number, a symbol and {food}"""),
    "games": _lines("""
        stuck on {gamething} in {game}
        {game} {when} with {person}?
        finally cleared {gamething} in {game}
        {game} is on sale, there goes my {day}
        streaming {game} at {clock}, come say hi
        {nnn} hours in {game} and still scared of {gamething}
        the soundtrack of {game} is {adj}
        hot take: {game} is better than {game}
        {person} beat me at {game} {n} times
        {gamething} is so {adj}, devs please
        pre-ordered {game}
        servers for {game} are down {when}
        speedran {gamething} in {nn} minutes"""),
    "politics": _lines("""
        {politico} still has no answer on {policy}
        nobody asked us about {policy}
        read the whole plan for {policy} and it's {adj}
        {politico} and {politico} arguing about {policy} {when}
        did anyone watch the debate on {policy}?
        poll: {nn}% back {policy}
        vote {when}, it takes {n} minutes
        {politico} promised to fix {policy} in {year}
        my letter about {policy} got a reply from {politico}
        {policy} matters more than {politico} thinks
        petition on {policy} reached {nnn} names
        interesting thread on {policy} by a {job}
        public meeting about {policy} in {town} hall {when}"""),
    "travel": _lines("""
        {n} days until {country}!
        at {trip} with {person}
        flight to {country} delayed by {n} hours
        missing {country} so much {when}
        tips for {country} please, going {when}
        {trip} in {country} was {adj}
        packed {n} pairs of shoes for a weekend at {trip}
        ate {food} by {trip} and watched the sun go down
        the queue at passport control is {adj}
        someone take me to {trip}
        hostel in {country}: {adj} beds, {adj} breakfast
        {person} lost the tickets to {country}
        window seat to {country}, {drink} in hand
        would you rather {trip} or {trip}?"""),
    "love": _lines("""
        {love} made me {food} {when}
        thinking about {love} {when}
        {n} years with {love} {when}
        {love} texted back after {n} days
        I just want someone to share {food} with
        {love} said yes!!
        love is {love} saving you the last bit of {food}
        being single on a {day} is {adj}
        do I text {love} or not
        {love} hates {genre} but came to the gig anyway
        good morning to {love} only
        you deserve someone who brings you {drink} at {clock}
        first date {when} and I'm {feel}"""),
    "health": _lines("""
        I have {ailment} {when}
        {ailment} go away please
        home remedies for {ailment}?
        called in sick with {ailment}
        doctor said {drink} and rest for {ailment}
        {n} days with {ailment}, send soup
        dentist {when}, feeling {feel}
        slept {n} hours, feeling {feel}
        drink your water, {name}
        flu jab done {when}
        therapy {when}, best decision I made
        {person} has {ailment} so I'm cooking {food}"""),
    "fitness": _lines("""
        {exercise} done {when}
        skipped {exercise} for {food}
        {exercise} with {person} {when}, pray for my legs
        new personal best at {exercise}
        {exercise} at {clock} should be illegal
        day {nn} of {exercise}
        who invented {exercise} and why
        signed up for {exercise} and instantly regret it
        post {exercise} {drink} tastes so {adj}
        can barely walk after {exercise}
        my watch says {nnn} calories, I ate {food}"""),
    "memes": _lines("""
        nobody: / me at {clock}: {food}
        me: I'll sleep early. also me at {clock}: {game}
        tag someone who {petact}
        how it started / how it's going
        POV: you hear {song} in the supermarket
        {sign}s be like: {horo}
        choose your fighter: {food}, {drink}, {pet}
        I'm not lazy I'm {feel}
        this is your sign to get {food}
        {day}: exists. me: {feel}
        name a more iconic duo than {food} and {drink}
        adulting is {chore} forever
        my toxic trait is thinking I can do {exercise}
        plot twist: {person} was right
        brain at {clock}: remember {year}?"""),
    "spam": _lines("""
        WIN {item}! follow and retweet to enter, ends {day}
        {spamoffer} when you sign up with code {name}{nn}
        get {spamoffer} now >> {link}
        I earned ${nnn} this week, DM me how
        {item} now {nn}% off at {company} {link}
        we follow back! {spamoffer} for the first {nn}
        Check out {item} on my shop {link}
        {company} giveaway: {item} + {spamoffer}. Tag {n} friends
        limited offer: {spamoffer} until {clock}
        hot deal {item} only ${nn} free delivery {link}
        {n} people followed me and one person unfollowed me
        Vintage {item} for sale, barely worn, {town} pickup
        Improve your ranking with {company}, {spamoffer} {link}"""),
    "jobs": _lines("""
        {company} is hiring a {job} in {town}. Apply: {link} #jobs
        #hiring {job}, {nn} hours a week, {town} {link}
        Join {company} as a {job}! {link}
        {town}: part-time {job} wanted, start {when}
        looking for work as a {job}, please share
        interview at {company} for {job} {when}
        Job alert: senior {job} ({town}) {link} #job
        a {job} is the best job I've ever had
        We need a {job} who likes {food}
        open day for trainee {job}s at {company} {when}"""),
    "weatherbot": _lines("""
        {town} weather {clock}: {temp}C, {sky}, wind {n} mph, humidity {nn}%
        Forecast for {town} {day}: {sky}, high {temp}C, low {n}C
        Temp {temp}.{n}C, Barometer {nnn}.{n} hPa, Rain today {n}.{n} mm, {town}
        {town}: {sky}. Sunrise {clock}. UV index {n}.
        Current conditions {town}: {sky}, {temp} degrees, visibility {n} miles
        {day} outlook: {sky} then {sky}, {temp}C. Pollen low.
        Tide times {town}: high {clock}, low {clock}"""),
    "horoscope": _lines("""
        {sign}: {horo}, {horo}
        Today's horoscope for {sign}: {horo}. {link}
        {sign} {day}: {horo}
        as a {sign} I can confirm {horo}
        {sign} and {sign} together? {horo}
        Daily tarot: {horo}
        never trust a {sign} before {clock}
        typical {sign}, {horo}"""),
    "birthday": _lines("""
        happy birthday {name}! have a {adj} day
        happy {nth} birthday to {person}
        it's my birthday {when} and I want {food}
        HBD {name}, love you loads
        {person} forgot my birthday
        birthday cake for {person}: {food} flavour
        {n} days until my birthday, I accept {item}
        thank you for all the birthday messages, feeling {feel}
        wishing {person} the most {adj} birthday
        surprise party for {name} {when}, keep quiet"""),
    "shows": _lines("""
        watching {show} {when} and I'm {feel}
        {show} season {n} is {adj}
        no spoilers for {show} please
        who else is crying at {show}?
        {show} episode {n}: {adj} ending
        binged all of {show} with {person}
        they cancelled {show}?!
        the {job} in {show} is my favourite
        {show} or {show}, what do we watch {when}?
        I only watch {show} for the {food}
        {name} should have won {show}
        rewatching {show} from {year}
        the finale of {show} is {when}"""),
    "family": _lines("""
        {relative} {famact}
        {relative} {famact} {when}
        not {relative} asking me about {phone} settings
        sunday lunch at {relative}'s: {food} and gossip
        {relative} {famact} while I did {chore}
        family group chat: {relative} {famact}
        miss {relative} so much {when}
        {relative} visits {when}, time for {chore}
        my kids think {food} is a vegetable
        proud of {relative}, got into {subject} school
        bedtime took {n} stories {when}
        {relative} texted: 'bring {drink}'"""),
    "fashion": _lines("""
        bought {item} instead of paying bills
        does {item} go with {item}?
        {item} from {company} is so {adj}
        returning {item}, it's too {adj}
        need {item} before {when}
        {person} wore {item} to a wedding
        fringe or no fringe? be honest
        thrifted {item} for ${n}
        {year} fashion is back and I'm {feel}
        matching pyjamas with {pet}"""),
    "books": _lines("""
        just finished {book} and I'm {feel}
        {book} is the most {adj} thing I read this year
        book club {when}: {book}
        {n} chapters left of {book}
        {person} lent me {book} in {year}, never gave it back
        currently reading {book} with {drink}
        the ending of {book}... {adj}
        audiobook of {book} makes {chore} bearable
        library fine for {book}: ${n}
        wrote {nnn} words of my novel {when}"""),
    "home": _lines("""
        {chore} {when}, thrilling
        spent {day} doing {chore}
        I'd rather do anything than {chore}
        {plant} finally growing!
        my {adj} garden: {plant} and hope
        how do you keep {plant} alive?
        {person} helped with {chore} for once
        new flat in {town}, {n} boxes left
        rent in {town} is {adj}
        first {plant} of the season
        slugs ate {plant} {when}
        the neighbours are doing {chore} at {clock}"""),
    "money": _lines("""
        payday {when}, broke by {day}
        checked my bank account, feeling {feel}
        {item} costs HOW much
        saving for {country}, goodbye {food}
        {company} shares up {n}%
        split the bill {n} ways and still paid ${nn}
        found ${n} in my coat
        my electric bill is {adj}
        budget tip: stop buying {drink}
        interest rates unchanged {when}"""),
    "science": _lines("""
        fascinating documentary about {science} {when}
        did you know {science} are older than {science}?
        new study on {science} with {nnn} volunteers {link}
        my kid only talks about {science}
        reading about {science} at {clock} again
        talk on {science} at {town} college {when}
        {science} make me feel {feel}
        a {job} explains {science} in {n} minutes {link}"""),
    "photos": _lines("""
        {photo} in {town} {when} {link}
        took a picture of {photo} on my {phone}
        {photo}, {town}, {clock} {link}
        posted a new photo: {photo} {link}
        missed the shot of {photo} by {n} seconds
        {photo} never gets old
        waited {n} hours for {photo}
        {sky} light on {photo}"""),
    "sleep": _lines("""
        can't sleep, thinking about {food}
        it's {clock} and I'm wide awake
        dreamt that {person} was a {job}
        good night {town}
        good morning world, feeling {feel}
        {n} alarms and I still missed the bus
        nap turned into {n} hours
        insomnia and {show}, name a better pair
        going to bed before {clock} like a legend
        I was asleep till {pet} sat on me"""),
    "community": _lines("""
        bake sale at {town} school {when}, {food} and more
        found a set of keys near {town} market
        pub quiz in {town} {when}, need {n} more
        {town} market open {when} until {clock}
        thanks to the {job} who helped me in {town}
        charity {exercise} for the hospice {when} {link}
        {town} library has {book} on display
        choir practice {when}, bring {drink}
        yard sale: {item}, {item}, everything ${n}
        new {food} van outside {town} station
        town council minutes on {policy} are online {link}"""),
    "quotes": _lines("""
        be the {adj} you want to see in the world
        never let a {adj} {day} ruin your week
        if you can dream about {food} you can cook it
        you don't need {item} to be {feel}
        stay {feel}, drink {drink}, be kind
        small steps every {day}
        people who are {feel} make others {feel}
        some days are for {exercise}, some days are for {food}
        not all who wander want {item}"""),
}

FIGURATIVE: tuple[str, ...] = _lines("""
    my {phone} is dying and I'm nowhere near a socket
    this {art} is {fires}
    {band} just dropped the {art} and it's {fires}
    traffic to my blog exploded {when}, {nnn} visitors
    he bombed {bombed} and still laughed
    I totally bombed {bombed} {when}
    shots shots shots at the bar with {person} {when}
    absolutely flooded with {flood} {when}
    a flood of {flood} after the {show} finale
    crashed on {crashplace} after {exercise}
    crashing at {person}'s place {when}
    a riot of {colours} in the garden {when}
    an earthshaking goal from the {team} {position}
    {explode} blew up {when}
    {explode} is exploding because of {show}
    {person} {kill} with these jokes
    {exercise} {kill}
    {team} destroyed {team} {n} - {n}, total massacre
    our {position} is a weapon, shoots from {nn} yards
    {team} on fire, {n} wins in a row
    {subject} {schoolthing} murdered me
    I would die for {food}
    if I don't get {food} I'm going to riot
    the crowd went off like a bomb when {band} played {song}
    dropped a truth bomb on {person} {when}
    photobombed by {pet} in every picture
    bath bomb and {show}, perfect {day}
    these chillies are a bomb, my mouth is burning
    the kids are a hurricane, house looks like a war zone
    toddler meltdown, category {n} storm in the kitchen
    a storm in a teacup about {policy}
    political earthquake after the vote on {policy}
    {politico} under fire over {policy}
    {politico} came out all guns blazing on {policy}
    heated debate on {policy}, sparks flying
    ticket site crashed {n} minutes after {band} went on sale
    {game} crashed again right before {gamething}
    my laptop crashed and took {worktask} with it
    car crash television, this {show} episode
    train wreck of an interview {when}
    sugar crash after all the {food}
    stock crash has me eating {food}
    avalanche of {flood}, see you in {year}
    drowning in {worktask} {when}
    buried under {schoolthing}, send rescue
    the {position} got fired after the {team} game
    fired up for {exercise} {when}
    you're fired! love when they say it on {show}
    spilled the tea and set the group chat on fire
    burning the midnight oil for {subject}
    my legs are burning after {exercise}
    killing time at {trip}
    {name} stabbed me in the back over {item}
    shooting a music video in {town} {when}
    photo shoot in {town}, {adj} location
    {name} is a ticking time bomb without {drink}
    smashed it at {exercise} {when}
    got hit by a wave of nostalgia for {song}
    {love} gives me explosions in my heart
    my hair looks like an explosion in a {food} factory
    attack of the {feel} feelings {when}
    panic attack over {schoolthing} but we got through
    hijacked {person}'s playlist to play {genre}
    held hostage by {pet} on my lap, can't move
    sneak attack by {pet} at {clock}
    bring the house down {when}, {band}!
    raid {when} at {clock}, need a healer for {gamething}
    {drink} shots before the {exercise} shots on goal
    the sale at {company} was a stampede over {item}
    kids invaded my kitchen and looted the {food}
    landslide victory for {politico}
    tornado of a week, {n} deadlines and {ailment}
    the traffic in my head at {clock} never stops
    jam, but the {food} kind
    {food} so hot the kitchen nearly caught fire haha
""")

HARD_NEAR: tuple[str, ...] = _lines("""
    fire drill at {drillplace} {when}, stood outside for {nn} minutes
    fire alarm went off at {drillplace} again, just burnt toast
    false alarm at {drillplace}, everyone back inside by {clock}
    evacuation exercise at {drillplace} {when}, please don't be worried by the sirens
    emergency services training near {town} {when}, smoke is part of the exercise
    {carmodel} gets {n} stars in the crash test
    crash test video of the {carmodel}: the dummy flew {n} metres
    review: the {carmodel} brakes late but survives a {nn} mph barrier test
    watching {warfilm}, the bombing scene is so {adj}
    {warfilm} has the best tank battle ever filmed
    the explosion in {warfilm} was done without computers
    extras wanted for riot scene in {town}, film crew pays ${nn}
    they're filming {show} in {town}, fake police cars and a burning bus on set
    just blew up {gamespot} in this level of {game}
    {name} shot me with {weaponthing} {n} times in {game}
    planted a bomb at {gamespot} and we won the round in {game}
    threw {weaponthing} into {gamespot}, {n} kills in {game}
    flood simulator in {game}: drowned {nnn} citizens by accident
    drove off the bridge in {game}, {n} car pile-up, so funny
    {nn} years since the {town} {disaster}, we remember
    on this day in {year}: the {town} {disaster}
    documentary about the {year} {disaster} in {town} {when}
    memorial service {when} for the victims of the {year} {disaster}
    grandad tells the story of the {year} {disaster} in {town}
    the book on the {year} {disaster} is {adj}
    road safety week: speed kills, slow down near schools {link}
    don't text and drive, a crash takes {n} seconds
    buckle up! seat belts save {nnn} lives a year {link}
    think bike: most collisions happen at junctions
    is your home covered for {disaster}? {insure} insurance from ${n} a month {link}
    {company} {insure} insurance: because accidents happen {link}
    had an accident that wasn't your fault in {year}? call {company}
    test your smoke alarm every {day}
    fire safety tip: never leave {food} unattended on the stove
    {storm} warning lifted for {town}, it stayed {sky}
    {storm} forecast for {town} {when}, so far just {sky}
    they promised a {storm} and we got {n} drops
    yellow warning of {storm} issued for {town}, valid until {clock}
    waiting for the {storm}, bought {food} just in case
    stocking up for {storm}: {drink} and {show}
    what would you pack in an earthquake kit?
    earthquake preparedness day at {drillplace}: drop, cover and hold on
    learned how tornadoes form in {subject} {when}
    visited the museum of bombs in {town}, {adj} exhibits
    the war museum in {town} has {weaponthing} from {year}
    exhibition of riot photography from {year} opens {when}
    police recruitment evening in {town} {when}, {nn} places
    become a volunteer firefighter in {town}! {link}
    the fire service visited {drillplace}, kids loved the engine
    bomb disposal robot demo at {town} tech fair {when}
    {team} attack looks lethal, {n} shots on target in {nn} minutes
    {team} counter attack, shot from the {position}, blocked
    {team} ultras lit flares {when}, smoky but fun
    what a shot! {team} explode into life after {nn} minutes
    crash at lap {nn}, safety car out, driver is fine #racing
    huge pile-up in the sprint, {n} riders down, stage goes on #cycling
    the old {landmark} in {town} was demolished {when}, a controlled blast
    crowds watch {landmark} blown up in {town}, planned for {n} months
    road closed {when} for the {landmark} demolition in {town}
    fireworks over {town} {when}, loud bangs scared {pet}
    is that gunfire or fireworks in {town}? fireworks, it's {day}
    bonfire night in {town}: burning the guy at {clock}
    bonfire in the garden, whole street smells of smoke
    traffic as slow as always on the {town} ring road {when}
    stuck in traffic {when}, rush hour in {town}, nothing new
    roadworks on {town} high street until {day}, expect delays
    {n} minute delay at {town} because of the school run
    learner driver stalled at the {town} lights {n} times, horns everywhere
    peaceful march for {policy} {when}, kids and drums, {adj} mood
    strike vote {when}: {job}s in {town} want better pay
    sit-in at {drillplace} about {policy}, they brought {food}
    court sentences man for {year} armed robbery in {town}
    crime podcast about the {year} {town} shooting, episode {n}
    true crime night: {book} and the stabbing in chapter {n}
    clay pigeon shooting with {person} {when}
    archery club in {town}, {n} arrows in the gold
    biology of wild fires in {subject} lecture, pine cones need heat
    controlled burn on the moor near {town} {when}, don't call the brigade
    barbecue smoke so thick {person} asked if the house was on fire
    volcano documentary {when}, lava is {adj}
    dam inspection near {town} all fine, water level {nn} cm
    high tide at {town} {clock}, usual puddle on the quay
    toy gun found at {drillplace}, nothing to worry about
    suspicious bag at {town} station was somebody's {food}
    charity ambulance push through {town}, {nnn} pounds raised
    first aid course {when}: burns, bleeding and {ailment}
    {job} dream: I dreamt of an earthquake and {pet} saved me
    insurance company asks how my {carmodel} got scratched in a car park
    engineers test the flood sirens in {town} at {clock}, just a test
""")

FOREIGN: dict[str, tuple[str, ...]] = {
    "es": _lines("""
        qué rico está el {es_c} de la abuela
        {es_p} me invitó a comer {es_t}
        tengo mucho sueño {es_t}
        {es_p} no contesta los mensajes
        feliz cumpleaños a {es_p}, te quiero mucho
        {es_t} hay partido y no tengo con quién verlo
        quiero {es_c} y dormir {n} horas
        {es_t} empiezo el gimnasio, lo juro
        la fiesta fue una bomba {es_t}
        estoy muerto de hambre, quiero {es_c}
        hace mucho calor {es_t}, {temp} grados
        {es_p} canta todo el día la misma canción
        simulacro de incendio en la oficina {es_t}
        el examen de {es_t} me va a matar
        qué serie me recomiendan para {es_t}?"""),
    "fr": _lines("""
        j'ai mangé {fr_c} avec {fr_p}
        {fr_p} ne répond jamais au téléphone
        trop fatigué {fr_t}
        bon anniversaire à {fr_p} !
        {fr_t} il fait {temp} degrés, incroyable
        qui veut {fr_c} {fr_t} ?
        {fr_p} a encore oublié les clés
        il pleut {fr_t}, je reste au lit
        le match {fr_t} va être génial
        cette chanson est une bombe
        je suis mort de rire avec {fr_p}
        exercice d'évacuation au lycée {fr_t}, rien de grave
        encore {n} jours avant les vacances
        je cherche un bon livre pour {fr_t}"""),
    "pt": _lines("""
        que vontade de comer {pt_c} {pt_t}
        {pt_p} fez {pt_c} e ficou uma delícia
        estou com muito sono {pt_t}
        feliz aniversário, {pt_p} merece tudo
        {pt_p} não para de falar da novela
        {pt_t} tem jogo e eu vou assistir com {pt_p}
        morrendo de rir com {pt_p}
        essa música é uma bomba
        faltam {n} dias para as férias
        {pt_t} faz {temp} graus, que calor
        alguém quer {pt_c}?
        choveu um pouco {pt_t} e já parou
        prova {pt_t} e eu não estudei nada"""),
    "in": _lines("""
        makan {id_c} sama {id_p} {id_t}
        {id_p} bikin {id_c}, enak banget
        ngantuk banget {id_t}
        selamat ulang tahun buat {id_p}
        {id_t} cuacanya panas, {temp} derajat
        pengen {id_c} tapi hujan
        {id_p} belum balas pesan
        macet seperti biasa {id_t}
        tugas kuliah banyak banget {id_t}
        lagu ini bikin kangen {id_p}
        siapa mau {id_c}? aku traktir
        {n} hari lagi liburan
        nonton film sama {id_p} {id_t}"""),
    "de": _lines("""
        {de_p} hat {de_c} gemacht, so lecker
        ich bin {de_t} so müde
        wer will {de_c}?
        {de_p} ruft nie zurück
        alles Gute zum Geburtstag, {name}!
        {de_t} sind es {temp} Grad
        noch {n} Tage bis zum Urlaub
        der Zug hat {nn} Minuten Verspätung, wie immer
        {de_t} Probealarm in der Schule, alles gut
        das Lied ist der Hammer, Bombenstimmung
        {de_p} und ich schauen {de_t} eine Serie
        ich brauche {de_c} und Ruhe
        die Prüfung {de_t} macht mich fertig"""),
    "tl": _lines("""
        ang sarap ng {tl_c} ni {name}
        gusto ko ng {tl_c} {tl_t}
        sobrang antok ko {tl_t}
        nagluto ng {tl_c} ang {tl_p}
        maligayang kaarawan, {name}!
        ang init {tl_t}, {temp} degrees
        hindi sumasagot ang {tl_p}
        trapik na naman {tl_t}, sanay na ako
        {n} araw na lang bakasyon na
        manonood kami ng sine {tl_t}
        kasama ko ang {tl_p} {tl_t}
        patay ako sa exam {tl_t}"""),
    "ar": _lines("""
        أحب {ar_c} كثيرا
        {ar_p} يحب {ar_c}
        صباح الخير يا أصدقاء
        أنا متعب جدا {ar_t}
        عيد ميلاد سعيد يا {ar_p}
        الجو جميل {ar_t}
        من يريد {ar_c} {ar_t}؟
        المباراة {ar_t} مع {ar_p}
        عندي امتحان {ar_t}
        أشاهد المسلسل مع {ar_p} {ar_t}
        تصبحون على خير
        درجة الحرارة {ar_t} {temp}"""),
    "ja": _lines("""
        {ja_t}は{ja_c}が食べたい
        {ja_p}と{ja_c}を食べました
        {ja_t}はとても眠い
        {ja_p}、お誕生日おめでとう
        この{ja_c}、本当においしい
        {ja_t}の気温は{temp}度です
        {ja_p}が電話に出ない
        あと{n}日で夏休み
        {ja_t}はテストがあります
        {ja_p}と映画を見ます
        おはようございます、{ja_t}も頑張ろう
        新しいゲームが楽しすぎる、もう{n}時間遊んだ
        {ja_t}は学校で避難訓練があります"""),
}

# Crisis tweets. A frame is a sentence with holes for clauses: [act] is an actionable phrase of the event,
# [act2] a second one, [extra] one of another crisis type; what stands in brackets becomes a gold span.
TRAIN_FRAMES: tuple[str, ...] = _lines("""
    omg [act], stay away from {place}
    BREAKING: [act] #{tag}
    [act] in {place} right now
    {place}: [act], {hurt} people hurt
    just saw it myself, [act]
    [act], sirens everywhere
    can't believe it, [act]. praying for {place}
    [act] and [act2]
    my mum lives in {place} and says [act]
    {source} reporting that [act] #{tag}
    UPDATE {place}: [act]. {hurt} injured
    heard a noise and then [act]
    avoid {place}! [act]
    [act]. [act2]. this is really happening in {place}
    still shaking, [act] two streets from me
    please share: [act] #{place_tag}
""")
TRAIN_EXTRA_FRAMES: tuple[str, ...] = _lines("""
    [act] so [extra] #{tag}
    {place} is unreal, [act] and now [extra]
    [extra] after [act], says {source}
""")
TRAIN_VAGUE: tuple[str, ...] = _lines("""
    thinking of everyone in {place} tonight
    what on earth is going on in {place}?
    stay safe {place} #{tag}
    my heart goes out to {place}, terrible news
    anyone in {place} please check in with your family
    just heard the news from {place}, no words
    so many sirens towards {place}, does anybody know more?
    #{tag} trending and I'm scared to look
""")
TEST_FRAMES: tuple[str, ...] = _lines("""
    Witnesses near {place} describe how [act]
    Confirmed by {source}: [act]
    [act] - live pictures from {place} #{tag}
    I'm on the scene, [act], keep clear please
    news desk: [act]; {hurt} taken to hospital
    #{tag} [act], nobody is allowed through
    whole of {place} is talking about it: [act]
    [act] while [act2]
    oh no oh no, [act]
""")
TEST_EXTRA_FRAMES: tuple[str, ...] = _lines("""
    [act], then [extra] #{tag}
    {place} residents say [act] before [extra]
""")
TEST_VAGUE: tuple[str, ...] = _lines("""
    sending love and strength to {place}
    does anyone have an update from {place}??
    phone lines to {place} are jammed, hope all are ok
    worst night ever for {place} #{tag}
""")
HIDDEN_FRAMES: tuple[str, ...] = _lines("""
    [act] near {place}, be careful
    wow, [act] on my way home from {place}
    help, [act]!! somebody send someone to {place}
    {place} police say [act]
    is anyone else seeing this? [act] #{place_tag}
    [act]... {hurt} hurt I think
    dad just called, [act]
    guys [act], I'm at {place} and it's chaos
    [act], seen from my window
""")

# type -> events; an event is (place, tag, acts, (other type, act)).
Event = tuple[str, str, tuple[str, ...], tuple[str, str]]

TRAIN_EVENTS: dict[str, tuple[Event, ...]] = {
    "traffic": (
        (
            "Harrowdale",
            "A9417crash",
            _lines("""
            a lorry has jackknifed across both lanes of the A9417
            three cars piled into the back of a lorry
            the A9417 is closed in both directions
            a driver is trapped under the trailer
            there is diesel all over the carriageway"""),
            ("fire_explosion", "the fuel tank caught fire"),
        ),
        (
            "Pellworth",
            "pellworthtrain",
            _lines("""
            a commuter train has derailed outside the station
            two carriages are lying on their side
            the train hit a van on the level crossing
            passengers are climbing out of broken windows
            all lines through the junction are blocked"""),
            ("natural_hazard", "a landslip covered the track"),
        ),
        (
            "Costa Verana",
            "veranabus",
            _lines("""
            a coach full of pupils went off the mountain road
            the bus rolled over twice into the ravine
            rescuers are cutting people out of the bus
            one lane of the pass is blocked by the wreck
            a taxi smashed head-on into the coach"""),
            ("fire_explosion", "smoke is pouring from the engine"),
        ),
        (
            "Lindmoor Bridge",
            "lindmoor",
            _lines("""
            a forty-car pile-up is blocking the bridge
            a tanker overturned in the fog
            cars keep skidding into each other on the ice
            a cyclist has been knocked down by a van
            traffic is at a standstill after the smash"""),
            ("fire_explosion", "the tanker is leaking and burning"),
        ),
    ),
    "fire_explosion": (
        (
            "Oldcastle Mill",
            "millfire",
            _lines("""
            the old cotton mill is on fire
            flames are coming through the mill roof
            thick black smoke is drifting over the houses
            the fourth floor has collapsed in the blaze
            firefighters are pulling people off the balcony"""),
            ("traffic", "two fire engines collided at the gate"),
        ),
        (
            "Sankt Broden",
            "brodenplant",
            _lines("""
            a huge explosion tore through the fertiliser plant
            the blast blew out windows for a mile
            a second storage tank has exploded
            workers are missing inside the burning plant
            toxic smoke is spreading to the school"""),
            ("natural_hazard", "the blast set off a landslide"),
        ),
        (
            "Marlow Heights",
            "marlowtower",
            _lines("""
            a tower block is burning from the tenth floor up
            people are trapped at the windows above the fire
            burning cladding is falling on the street
            a gas main blew up in the basement
            the stairwell is full of smoke"""),
            ("civil_disorder", "angry neighbours fought with officials"),
        ),
        (
            "Quillon Forest",
            "quillonfire",
            _lines("""
            a wildfire has jumped the highway
            cabins on the ridge are burning
            the whole hillside is in flames
            a propane depot exploded next to the campsite
            everyone south of the creek must evacuate"""),
            ("traffic", "cars crashed while fleeing on the one road out"),
        ),
    ),
    "bombing": (
        (
            "Varos Central",
            "varosstation",
            _lines("""
            a bomb went off in the ticket hall
            a second device exploded on platform two
            a suitcase bomb was left by the kiosk
            the station has been evacuated after the bombing
            bomb squad is carrying out a controlled explosion"""),
            ("armed_assault", "someone fired at people running out"),
        ),
        (
            "Tel Amira",
            "amiramarket",
            _lines("""
            a car bomb ripped through the spice market
            a suicide bomber attacked the checkpoint
            dozens are lying in the street after the blast
            nails from the bomb are stuck in the shop doors
            another parked car is rigged with explosives"""),
            ("fire_explosion", "the market stalls are burning"),
        ),
        (
            "Brackenfield",
            "brackenfieldrun",
            _lines("""
            two bombs exploded near the finish line
            a backpack bomb went off among the runners
            police found a third device in a litter bin
            several runners were hurt in the bombing
            the race is stopped because of a bomb threat"""),
            ("armed_assault", "a suspect shot a security guard"),
        ),
        (
            "Hotel Meridia",
            "meridia",
            _lines("""
            a parcel bomb blew up in the lobby
            the front of the hotel was torn off by a truck bomb
            guests are buried after the bomb blast
            a grenade was thrown into the bar
            officers are defusing a bomb in the garage"""),
            ("fire_explosion", "the upper floors are on fire"),
        ),
    ),
    "armed_assault": (
        (
            "Fairlawn Mall",
            "fairlawn",
            _lines("""
            a gunman is shooting people in the food court
            shots were fired outside the cinema
            an active shooter is on the second floor
            shoppers are hiding in the storerooms from a shooter
            a guard was shot in the chest"""),
            ("bombing", "he threw a pipe bomb"),
        ),
        (
            "Ostrander Lane",
            "ostranderlane",
            _lines("""
            a man with a machete is stabbing passers-by
            two people have been stabbed at the bus stop
            the attacker slashed a police officer
            the knifeman is running towards the park
            a woman is bleeding from a knife wound"""),
            ("traffic", "a van ran into the crowd"),
        ),
        (
            "Kessel Bay",
            "kesselbay",
            _lines("""
            masked men opened fire on the beach bar
            gunmen took tourists hostage on the ferry
            a speedboat with armed men attacked the harbour
            police are exchanging fire with the attackers
            snipers are on the roof of the customs house"""),
            ("fire_explosion", "the ferry is on fire"),
        ),
        (
            "Dunreach College",
            "dunreach",
            _lines("""
            a student has opened fire in the library
            the campus is on lockdown because of a shooter
            a teacher was shot through the door
            gunfire is coming from the science block
            swat teams are storming the hall"""),
            ("bombing", "explosives were found in his locker"),
        ),
    ),
    "civil_disorder": (
        (
            "Croyfield",
            "croyfieldriots",
            _lines("""
            rioters are smashing shop windows on the high street
            looters are emptying the phone shop
            the mob is throwing bricks at the police
            youths are building barricades from bins
            riot police are charging the crowd"""),
            ("fire_explosion", "they started burning cars"),
        ),
        (
            "Plaza Olmedo",
            "olmedo",
            _lines("""
            police fired tear gas at the protesters
            demonstrators broke through the palace gates
            thousands are blocking the central bridge
            the march turned violent at the ministry
            officers are beating people with batons"""),
            ("armed_assault", "someone in the crowd started shooting"),
        ),
        (
            "Stadium Norden",
            "norden",
            _lines("""
            fans stormed the pitch and attacked the stewards
            a stampede crushed people against the fence
            hooligans are fighting outside the north stand
            seats and flares are flying at the away end
            water cannon is being used on the supporters"""),
            ("fire_explosion", "the ticket office was set alight"),
        ),
        (
            "Redmoor Prison",
            "redmoor",
            _lines("""
            inmates have taken over B wing
            prisoners are on the roof throwing tiles
            guards were taken captive in the riot
            the canteen is being wrecked by inmates
            riot squads are entering the prison"""),
            ("fire_explosion", "mattresses are burning in the yard"),
        ),
    ),
    "natural_hazard": (
        (
            "Isola Kamra",
            "kamraquake",
            _lines("""
            a strong earthquake just hit the island
            houses have collapsed in the old quarter
            people are buried under the rubble
            another aftershock brought down the church tower
            a tsunami warning is out for the coast"""),
            ("fire_explosion", "gas pipes are exploding"),
        ),
        (
            "Wexley-on-Tarn",
            "wexleyflood",
            _lines("""
            the river has burst its banks
            water is up to the windows on Mill Lane
            families are stuck on their roofs
            the flood swept away the footbridge
            the care home needs boats to evacuate"""),
            ("traffic", "cars are floating across the dual carriageway"),
        ),
        (
            "Jesper County",
            "jespertornado",
            _lines("""
            a tornado touched down west of the school
            the twister flattened the trailer park
            roofs have been ripped off on Elm Street
            power lines are down all over town
            the funnel is heading for the hospital"""),
            ("traffic", "the wind flipped lorries on the interstate"),
        ),
        (
            "Monte Serrado",
            "serrado",
            _lines("""
            a mudslide buried the lower village
            the hillside came down on the houses
            the avalanche hit a group of skiers
            rescuers are digging for survivors in the mud
            the only road is cut by the landslide"""),
            ("traffic", "a minibus was pushed into the gorge"),
        ),
    ),
}
TEST_EVENTS: dict[str, tuple[Event, ...]] = {
    "traffic": (
        (
            "Gannet Tunnel",
            "gannettunnel",
            _lines("""
            a motorcyclist collided with a tractor
            an ambulance overturned inside the tunnel
            a multi-vehicle collision has shut the eastbound tube
            wreckage is scattered over three hundred metres"""),
            ("fire_explosion", "a hatchback burst into flames"),
        ),
        (
            "Aldersund",
            "aldersundtram",
            _lines("""
            a runaway tram ploughed into the queue
            pedestrians were run over at the crossing
            two trams crunched together by the depot
            the overhead cable snapped onto the carriages"""),
            ("civil_disorder", "furious passengers attacked the driver's cab"),
        ),
    ),
    "fire_explosion": (
        (
            "Port Halvard",
            "halvard",
            _lines("""
            a warehouse of fireworks detonated at the docks
            a fireball rose over the refinery
            cargo containers are ablaze on the quay
            the crane toppled after the detonation"""),
            ("traffic", "an engine crew's truck rammed a bus"),
        ),
        (
            "Nightingale Ward",
            "nightingale",
            _lines("""
            the maternity unit has gone up in flames
            oxygen cylinders are bursting one after another
            nurses are carrying babies out of the inferno
            the inferno has spread to the chapel"""),
            ("armed_assault", "a man stabbed the porter"),
        ),
    ),
    "bombing": (
        (
            "Sorrel Square",
            "sorrelsquare",
            _lines("""
            a suspected nail device detonated by the fountain
            an explosive vest was triggered in the queue
            sappers discovered live munitions under the stage
            the embassy was hit by a remote-controlled charge"""),
            ("civil_disorder", "crowds trampled the barriers"),
        ),
        (
            "Petrava Airfield",
            "petrava",
            _lines("""
            saboteurs dynamited the control tower
            a drone dropped explosives on the runway
            a booby-trapped trolley killed a mechanic
            a mortar shell landed in the departure lounge"""),
            ("fire_explosion", "jet fuel ignited in the hangar"),
        ),
    ),
    "armed_assault": (
        (
            "Basilica Norte",
            "basilicanorte",
            _lines("""
            assailants with rifles entered during mass
            worshippers were gunned down at the altar
            a hooded figure is hacking at people with an axe
            bullets are hitting the parish hall"""),
            ("bombing", "a charge detonated in the crypt"),
        ),
        (
            "Tinsel Row",
            "tinselrow",
            _lines("""
            robbers sprayed the jewellers with bullets
            a cashier was held at gunpoint
            the getaway crew fired at a patrol car
            a crossbow attacker wounded a child"""),
            ("traffic", "their getaway car mowed down a cyclist"),
        ),
    ),
    "civil_disorder": (
        (
            "Zelenka Avenue",
            "zelenka",
            _lines("""
            marchers overturned a police van
            rubber pellets were used on the strikers
            hundreds clashed with mounted officers
            the parliament steps were overrun"""),
            ("bombing", "a petrol bomb hit the town hall"),
        ),
        (
            "Mbali Township",
            "mbali",
            _lines("""
            gangs are plundering the supermarkets
            residents blocked the road with boulders
            an angry crowd dragged a suspect from his car
            vigilantes are chasing newcomers from their homes"""),
            ("armed_assault", "militia fired live rounds"),
        ),
    ),
    "natural_hazard": (
        (
            "Atoll Reva",
            "cyclonereva",
            _lines("""
            the cyclone tore the clinic apart
            storm surge swallowed the jetty
            palm trees are crashing through ceilings
            the airstrip is under two metres of sea"""),
            ("traffic", "a ferry ran aground with everyone aboard"),
        ),
        (
            "Mount Osk",
            "oskeruption",
            _lines("""
            the volcano erupted without notice
            lava has cut off the northern hamlets
            ash is making it impossible to breathe
            tremors cracked the reservoir wall"""),
            ("fire_explosion", "the sawmill is alight"),
        ),
    ),
}
HIDDEN_EVENTS: dict[str, tuple[Event, ...]] = {
    "traffic": (
        (
            "Ferris Roundabout",
            "ferris",
            _lines("""
        a pickup just hit a school bus
        a motorbike is wedged under a truck
        four cars crashed into each other"""),
            ("fire_explosion", "one of them is on fire"),
        ),
    ),
    "fire_explosion": (
        (
            "Larch Street",
            "larchstreet",
            _lines("""
        the bakery is burning down
        a gas bottle exploded in a flat
        the flames have reached the next house"""),
            ("traffic", "a hose truck crashed"),
        ),
    ),
    "bombing": (
        (
            "Camber Arcade",
            "camberarcade",
            _lines("""
        a bomb exploded in the arcade
        police found a bomb under a bench
        a blast from a parcel bomb hurt the clerk"""),
            ("fire_explosion", "shops are in flames"),
        ),
    ),
    "armed_assault": (
        (
            "Wyndham Park",
            "wyndhampark",
            _lines("""
        a man is shooting at joggers
        somebody got stabbed by the pond
        armed men are robbing the kiosk"""),
            ("traffic", "they rammed a police car"),
        ),
    ),
    "civil_disorder": (
        (
            "Tallow Market",
            "tallowmarket",
            _lines("""
        people are looting the electronics store
        protesters are throwing stones at police
        a mob is tearing down the fences"""),
            ("fire_explosion", "bins are on fire"),
        ),
    ),
    "natural_hazard": (
        (
            "Brinewater",
            "brinewater",
            _lines("""
        the ground shook and walls fell down
        flood water is coming into the houses
        a tree fell on a family in the storm"""),
            ("traffic", "the wind blew a van off the road"),
        ),
    ),
}
